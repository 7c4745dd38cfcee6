package placement

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	root "github.com/roost-run/roost"
)

// TestSpread has flyctl's own examples ("fly.toml", section 12).
func TestSpread(t *testing.T) {
	type counts map[root.Region]int
	for name, tt := range map[string]struct {
		regions string
		current counts
		total   int
		bound   int
		want    []RegionDelta
		err     string
	}{
		"from nothing":             {"scl,iad", nil, 3, -1, []RegionDelta{{"scl", 2}, {"iad", 1}}, ""},
		"one more":                 {"scl,iad", counts{"scl": 1, "iad": 1}, 3, -1, []RegionDelta{{"scl", 1}}, ""},
		"evenly":                   {"scl,iad", counts{"scl": 1, "iad": 1}, 6, -1, []RegionDelta{{"scl", 2}, {"iad", 2}}, ""},
		"one less":                 {"scl,iad", counts{"scl": 1, "iad": 1}, 1, -1, []RegionDelta{{"iad", -1}}, ""},
		"one less, other order":    {"iad,scl", counts{"scl": 1, "iad": 1}, 1, -1, []RegionDelta{{"scl", -1}}, ""},
		"others are ignored, down": {"scl,iad", counts{"scl": 3, "iad": 5, "ord": 1, "sin": 10}, 2, -1, []RegionDelta{{"scl", -3}, {"iad", -3}}, ""},
		"others are ignored, up":   {"scl,iad", counts{"scl": 3, "iad": 5, "ord": 1, "sin": 10}, 12, -1, []RegionDelta{{"scl", 2}, {"iad", 2}}, ""},
		"a bound, up":              {"scl,iad", counts{"scl": 2, "iad": 1}, 6, 3, []RegionDelta{{"scl", 1}, {"iad", 2}}, ""},
		"a bound, moved":           {"scl,iad,ord,sin", counts{"scl": 7, "iad": 1}, 8, 2, []RegionDelta{{"scl", -5}, {"iad", 1}, {"ord", 2}, {"sin", 2}}, ""},
		"a bound, too small":       {"scl,mia", nil, 10, 1, nil, "10 machines do not fit: 1 in each of scl, mia makes 2"},
		"the same":                 {"scl", counts{"scl": 2}, 2, -1, nil, ""},
		"to nothing":               {"scl,iad", counts{"scl": 2, "iad": 1}, 0, -1, []RegionDelta{{"scl", -2}, {"iad", -1}}, ""},
		"named twice":              {"scl,scl", nil, 2, 2, []RegionDelta{{"scl", 2}}, ""},
		"none in a region":         {"scl", counts{"scl": 2}, 0, 0, []RegionDelta{{"scl", -2}}, ""},
		"nowhere":                  {"", nil, 1, -1, nil, "no region"},
		"nowhere, none":            {"", nil, 0, -1, nil, ""},
		"negative":                 {"scl", nil, -1, -1, nil, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			var regions []root.Region
			for r := range strings.SplitSeq(tt.regions, ",") {
				if r != "" {
					regions = append(regions, root.Region(r))
				}
			}
			got, err := Spread(tt.total, tt.current, regions, tt.bound)
			if tt.err != "" {
				if root.KindOf(err) != root.Invalid || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want Invalid with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSpreadProperties: whatever is asked, the listed regions have total
// machines together afterwards, none too many, none less than none.
func TestSpreadProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		regions := rapid.SliceOfN(rapid.SampledFrom([]root.Region{"ams", "iad", "scl", "sin"}), 1, 6).Draw(t, "regions")
		current := rapid.MapOf(rapid.SampledFrom([]root.Region{"ams", "iad", "scl", "sin", "ord"}), rapid.IntRange(0, 9)).Draw(t, "current")
		total := rapid.IntRange(0, 30).Draw(t, "total")
		bound := rapid.IntRange(-1, 9).Draw(t, "bound")
		deltas, err := Spread(total, current, regions, bound)
		if err != nil {
			return
		}
		after := map[root.Region]int{}
		for _, r := range regions {
			after[r] = current[r]
		}
		for _, d := range deltas {
			after[d.Region] += d.Delta
		}
		sum := 0
		for r, n := range after {
			sum += n
			if n < 0 || bound >= 0 && n > bound {
				t.Errorf("%s would have %d machines, the bound is %d", r, n, bound)
			}
		}
		if sum != total {
			t.Errorf("together: got %d, want %d", sum, total)
		}
	})
}
