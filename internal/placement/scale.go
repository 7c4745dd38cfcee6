package placement

import (
	"slices"
	"strings"

	root "github.com/roost-run/roost"
)

// Unbounded, as the bound of machines in a region, is none.
const Unbounded = -1

// RegionDelta is by how many machines a region grows, or shrinks.
type RegionDelta struct {
	Region root.Region
	Delta  int
}

// Spread says how the machines of a process group change so that the regions
// have total of them together ("fly scale count" of the Fly docs; flyctl's
// algorithm). At most bound stand in one region, unless it is Unbounded.
// current is how many there are now; regions that are not listed are ignored.
// Regions that stay as they are are left out. Kind Invalid when so many do not
// fit.
func Spread(total int, current map[root.Region]int, regions []root.Region, bound int) ([]RegionDelta, error) {
	if total < 0 {
		return nil, root.Errorf(root.Invalid, "count: %d must not be negative", total)
	}
	var unique []root.Region
	for _, r := range regions {
		if !slices.Contains(unique, r) {
			unique = append(unique, r)
		}
	}
	n := len(unique)
	if bound != Unbounded && n*bound < total {
		return nil, root.Errorf(root.Invalid, "%d machines do not fit: %d in each of %s makes %d; allow more with --max-per-region, or name more regions with --region", total, bound, list(unique), n*bound)
	}
	if n == 0 {
		if total > 0 {
			return nil, root.Errorf(root.Invalid, "there is no region to put machines into: name one with --region")
		}
		return nil, nil
	}
	want := make([]int, n)
	sum := 0
	for i, r := range unique {
		want[i] = current[r]
		if bound != Unbounded && want[i] > bound {
			want[i] = bound
		}
		sum += want[i]
	}
	for i := 0; sum < total; i++ {
		if at := i % n; bound == Unbounded || want[at] < bound {
			want[at]++
			sum++
		}
	}
	// Down from the second region on, so that the first, the primary one,
	// keeps its machines longest.
	for i := 1; sum > total; i++ {
		if at := i % n; want[at] > 0 {
			want[at]--
			sum--
		}
	}
	var deltas []RegionDelta
	for i, r := range unique {
		if d := want[i] - current[r]; d != 0 {
			deltas = append(deltas, RegionDelta{r, d})
		}
	}
	return deltas, nil
}

func list(regions []root.Region) string {
	if len(regions) == 0 {
		return "no region"
	}
	names := make([]string, len(regions))
	for i, r := range regions {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}
