package machines

import (
	"fmt"
	"slices"
)

// presets are Fly's sizes: "fly.io/docs/about/pricing", and what flyctl knows.
// This is the one place that lists them.
var presets = []struct {
	name  string
	guest Guest
}{
	{"shared-cpu-1x", Guest{CPUKind: "shared", CPUs: 1, MemoryMB: 256}},
	{"shared-cpu-2x", Guest{CPUKind: "shared", CPUs: 2, MemoryMB: 512}},
	{"shared-cpu-4x", Guest{CPUKind: "shared", CPUs: 4, MemoryMB: 1024}},
	{"shared-cpu-6x", Guest{CPUKind: "shared", CPUs: 6, MemoryMB: 1536}},
	{"shared-cpu-8x", Guest{CPUKind: "shared", CPUs: 8, MemoryMB: 2048}},
	{"performance-1x", Guest{CPUKind: "performance", CPUs: 1, MemoryMB: 2048}},
	{"performance-2x", Guest{CPUKind: "performance", CPUs: 2, MemoryMB: 4096}},
	{"performance-4x", Guest{CPUKind: "performance", CPUs: 4, MemoryMB: 8192}},
	{"performance-6x", Guest{CPUKind: "performance", CPUs: 6, MemoryMB: 12288}},
	{"performance-8x", Guest{CPUKind: "performance", CPUs: 8, MemoryMB: 16384}},
	{"performance-10x", Guest{CPUKind: "performance", CPUs: 10, MemoryMB: 20480}},
	{"performance-12x", Guest{CPUKind: "performance", CPUs: 12, MemoryMB: 24576}},
	{"performance-14x", Guest{CPUKind: "performance", CPUs: 14, MemoryMB: 28672}},
	{"performance-16x", Guest{CPUKind: "performance", CPUs: 16, MemoryMB: 32768}},
	{"a10", Guest{CPUKind: "performance", CPUs: 8, MemoryMB: 32768, GPUs: 1, GPUKind: "a10"}},
	{"l40s", Guest{CPUKind: "performance", CPUs: 8, MemoryMB: 32768, GPUs: 1, GPUKind: "l40s"}},
	{"a100-40gb", Guest{CPUKind: "performance", CPUs: 8, MemoryMB: 32768, GPUs: 1, GPUKind: "a100-pcie-40gb"}},
	{"a100-80gb", Guest{CPUKind: "performance", CPUs: 8, MemoryMB: 32768, GPUs: 1, GPUKind: "a100-sxm4-80gb"}},
}

// Preset returns the guest that a size such as "shared-cpu-2x" names.
func Preset(size string) (Guest, bool) {
	for _, p := range presets {
		if p.name == size {
			return p.guest, true
		}
	}
	return Guest{}, false
}

// Presets lists the names of the sizes, smaller ones first; those with a GPU
// are last.
func Presets() []string {
	names := make([]string, len(presets))
	for i, p := range presets {
		names[i] = p.name
	}
	return names
}

// The CPU counts of each kind, and the memory in MB that a CPU may have.
var guestBounds = map[string]struct {
	cpus           []int
	least, most    int // per CPU; the least of a shared guest is not multiplied
	step           int
	leastIsPerCPUs bool
}{
	"shared":      {cpus: []int{1, 2, 4, 6, 8}, least: 256, most: 2048, step: 256},
	"performance": {cpus: []int{1, 2, 4, 6, 8, 10, 12, 14, 16, 32, 64, 128}, least: 2048, most: 8192, step: 1024, leastIsPerCPUs: true},
}

// Check says what is wrong with a guest's kind, number of CPUs and memory; nil
// if it is one of the sizes there are.
func (g Guest) Check() error {
	b, ok := guestBounds[g.CPUKind]
	if !ok {
		return fmt.Errorf("cpu_kind %q is not one of shared, performance", clip(g.CPUKind))
	}
	if !slices.Contains(b.cpus, g.CPUs) {
		return fmt.Errorf("%d is not a number of CPUs of kind %s (%v)", g.CPUs, g.CPUKind, b.cpus)
	}
	least := b.least
	if b.leastIsPerCPUs {
		least *= g.CPUs
	}
	if most := b.most * g.CPUs; g.MemoryMB < least || g.MemoryMB > most || g.MemoryMB%b.step != 0 {
		return fmt.Errorf("%d MB is not an amount of memory for a %s CPU times %d: use a multiple of %d from %d to %d",
			g.MemoryMB, g.CPUKind, g.CPUs, b.step, least, most)
	}
	return nil
}
