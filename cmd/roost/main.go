// Command roost is the whole product in one binary: the command line, and the
// processes of a host, which "roost server" starts from the same binary.
package main

import (
	"os"

	"github.com/roost-run/roost/internal/builder"
	"github.com/roost-run/roost/internal/cli"
	"github.com/roost-run/roost/internal/controlplane"
	"github.com/roost-run/roost/internal/edge"
	"github.com/roost-run/roost/internal/supervisor"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Processes{
		Server:  supervisor.Run,
		Control: controlplane.Run,
		Edge:    edge.Run,
		Builder: builder.Run,
	}))
}
