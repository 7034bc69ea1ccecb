package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var daemon string
	cmd := &cobra.Command{
		Use: "demo", Short: "See a cluster's egress go from open to default deny, on real packets, in under a minute", GroupID: "lab", Args: cobra.NoArgs,
		Long: `See a small cluster's egress go from "any pod reaches anything" to default deny with
every drop explained, on real packets in a lab of its own. Each claim is checked by connections
and by sniffers on the wire; the exit code is 1 if one is not true.

It needs Linux and root, takes less than a minute and leaves nothing behind.`,
	}
	cmd.Flags().StringVar(&daemon, "posternd", "", "path of posternd (default: beside this program, or in PATH)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path, err := a.posternd(daemon)
		if err != nil {
			return err
		}
		err = demo.Run(cmd.Context(), demo.Options{Out: a.Out, Colour: a.colour, Posternd: path, Program: a.Name, Now: a.Now})
		if errors.Is(err, demo.ErrClaim) {
			return &exitError{ExitProblem, err}
		}
		return a.privileged(err)
	}
	return cmd
}
