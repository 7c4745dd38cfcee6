package wire

import (
	"slices"

	root "github.com/roost-run/roost"
)

// Preset reads the name of a size, as `fly scale vm` takes them, with its
// memory: "shared-cpu-2x", "performance-1x".
func Preset(size string) (root.Guest, error) {
	guest, err := preset(size)
	counts := []int{1, 2, 4, 6, 8}
	if guest.CPUKind == "performance" {
		counts = []int{1, 2, 4, 6, 8, 10, 12, 14, 16}
	}
	if err != nil || !slices.Contains(counts, guest.CPUs) {
		return guest, root.Errorf(root.Invalid, "%q is not a size: use shared-cpu-1x, -2x, -4x, -6x, -8x, or performance-1x, -2x, -4x, -6x, -8x, -10x, -12x, -14x, -16x", clip(size))
	}
	return guest, nil
}
