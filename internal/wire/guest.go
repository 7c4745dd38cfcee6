package wire

import (
	"slices"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/machines"
)

// Preset reads the name of a size, as `fly scale vm` takes them, with its
// memory: "shared-cpu-2x", "performance-1x". Sizes with a GPU are none here.
func Preset(size string) (root.Guest, error) {
	g, ok := machines.Preset(size)
	if !ok || g.GPUs > 0 {
		names := slices.DeleteFunc(machines.Presets(), func(name string) bool { g, _ := machines.Preset(name); return g.GPUs > 0 })
		return root.Guest{}, root.Errorf(root.Invalid, "%q is not a size: use one of %s", clip(size), strings.Join(names, ", "))
	}
	return root.Guest{CPUKind: g.CPUKind, CPUs: g.CPUs, Memory: mib(g.MemoryMB)}, nil
}
