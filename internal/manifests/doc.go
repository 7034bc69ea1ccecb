// Package manifests reads Kubernetes objects from a directory of YAML and JSON
// files, for a node without a cluster, for tests and for the CLI.
//
// Flow of data:
//
//	directory -> Store.Rescan -> changed files -> kube.Decode -> kube.World
//	Store -> Flush, Snapshot, Findings (with file and line), Bindings
//	Watcher: fsnotify events and a periodic rescan -> Store.Rescan -> callback
//
// Files end in .yaml, .yml or .json, at any depth; names that begin with a dot
// are left out. A file holds any number of documents and Lists.
//
// Invariants kept here:
//
//	M1 A file that can't be read as a whole, or that states an address that can't
//	   be read, changes nothing: the objects of its last good version stay (I6).
//	   If there is no such version, what to deny is not known, and everything is
//	   denied until it can be read. Mistakes in rules are closed where they are.
//	M2 A file that lost its objects without being deleted is taken for half-written.
//	   So is one that does not end with a newline, or is written in place and lacks
//	   some of them: for a moment, which ends after two seconds however often it is
//	   written anew. One that grows is waited for longer, which is told; at the start
//	   of a Watcher it is then taken for one that can't be read.
//	M3 All changes of one rescan become visible together.
//	M4 The result depends on the files and on M1 only, not on the order in which
//	   they were found: of two objects of one name the first by path stands, and
//	   the other one is closed.
//	M5 A file counts as deleted only after a time in which it cannot have been there:
//	   neither an event nor a change of its directory may tell of it. A link to
//	   nothing is not deleted, and can't be read.
//
// The package is layer 3 and builds on every system.
package manifests
