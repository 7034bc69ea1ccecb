package kube

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// ending says whether a namespace is being deleted.
type ending uint8

const (
	notEnding   ending = iota
	endedSeen          // it has been deleted since the first Flush
	endedUnseen        // it was being deleted before: policies may have gone unseen
)

// endingOf reads a Namespace that is about to be set.
func (w *World) endingOf(n *corev1.Namespace) ending {
	if n.DeletionTimestamp == nil && n.Status.Phase != corev1.NamespaceTerminating {
		return notEnding
	}
	if !w.started {
		return endedUnseen
	}
	if have := w.objects[namespaceObject(n.Name)]; have != nil && have.ending != notEnding {
		return have.ending
	}
	return endedSeen
}

func namespaceObject(name string) ObjectRef { return ObjectRef{Kind: "Namespace", Name: name} }

// holdable reports whether an object's deletion can widen what the pods of its
// namespace may do: by rules that go, or by labels that rules select.
func holdable(ref ObjectRef) bool {
	switch ref.Kind {
	case "Namespace", "NetworkPolicy", "EgressPolicy", "DestinationSet":
		return true
	}
	return false
}

func namespaceOf(ref ObjectRef) string {
	if ref.Kind == "Namespace" {
		return ref.Name
	}
	return ref.Namespace
}

// hold takes back the deletions of a namespace's end while there are pods in it,
// and makes them real when there are none (K6). What was deleted together is
// judged together: the order of Delete makes no difference.
func (w *World) hold() {
	put := func(ref ObjectRef) {
		if e := w.removed[ref]; w.objects[ref] == nil {
			e.held = true
			w.objects[ref] = e
			w.index(ref, e)
			w.held[ref] = struct{}{}
		}
	}
	refs := slices.SortedFunc(maps.Keys(w.removed), compareRefs)
	for _, ref := range refs {
		if ref.Kind == "Namespace" && w.podsIn[ref.Name] > 0 {
			put(ref)
		}
	}
	for _, ref := range refs {
		if ref.Kind != "Namespace" && w.ends(ref.Namespace) {
			put(ref)
		}
	}
	clear(w.removed)
	var over []ObjectRef
	for ref := range w.held {
		if e := w.objects[ref]; e == nil || !e.held {
			delete(w.held, ref) // set anew
		} else if !w.ends(namespaceOf(ref)) {
			over = append(over, ref)
		}
	}
	for _, ref := range over {
		delete(w.held, ref)
		w.drop(ref)
	}
}

// ends reports whether a namespace is being deleted, or was, while there are pods in it.
func (w *World) ends(namespace string) bool {
	e := w.objects[namespaceObject(namespace)]
	return e != nil && (e.held || e.ending != notEnding) && w.podsIn[namespace] > 0
}

// policiesUnknown reports whether a namespace was being deleted before the first
// Flush: which of its policies had gone by then is not known, so its pods are cut off.
func (w *World) policiesUnknown(ref ObjectRef) bool {
	e := w.objects[ref]
	return e != nil && e.ending == endedUnseen && w.podsIn[ref.Name] > 0
}

// endFindings reports what is held, and namespaces that were being deleted before
// anybody looked.
func (w *World) endFindings() []Finding {
	var out []Finding
	for ref := range w.held {
		ns := namespaceOf(ref)
		message := fmt.Sprintf("is deleted, and stays in force until the last of %d pods of namespace %s has ended", w.podsIn[ns], ns)
		if ref.Kind == "Namespace" {
			message = fmt.Sprintf("is deleted, and its labels and policies stay in force until the last of its %d pods has ended: "+
				"to end them sooner, create the namespace anew", w.podsIn[ns])
		}
		out = append(out, Finding{Object: ref, Severity: Warning, Reason: ReasonHeld, Message: message})
	}
	for ns := range w.podsIn {
		if ref := namespaceObject(ns); w.policiesUnknown(ref) {
			out = append(out, Finding{
				Object: ref, Path: "metadata.deletionTimestamp", Severity: Error, Reason: ReasonHeld,
				Message: "the namespace was being deleted before its policies were read, and some may have gone: its pods are cut off until they have ended",
			})
		}
	}
	return out
}
