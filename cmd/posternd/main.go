// Command posternd is Postern's daemon: the agent of a node.
package main

import (
	"os"

	"github.com/postern-dev/postern/internal/daemon"
)

func main() { os.Exit(daemon.Main(os.Args[1:])) }
