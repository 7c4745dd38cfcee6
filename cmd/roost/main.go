// Command roost is the whole product in one binary: the command line, and the
// processes of a host, which "roost server" starts from the same binary.
package main

import (
	"context"
	"os"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/builder"
	"github.com/roost-run/roost/internal/cli"
	"github.com/roost-run/roost/internal/supervisor"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Processes{
		Server:  supervisor.Run,
		Control: missing,
		Edge:    missing,
		Builder: builder.Run,
	}))
}

func missing(context.Context, string) error {
	return root.Errorf(root.Unimplemented, "this process is not built yet")
}
