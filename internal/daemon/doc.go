// Package daemon is the command line of posternd. Layer 4.
package daemon
