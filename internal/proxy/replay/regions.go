package replay

import root "github.com/roost-run/roost"

// aliases are Fly's names for groups of regions ("Dynamic Request Routing").
var aliases = map[string][]root.Region{
	"apac": {"bom", "hkg", "nrt", "sin", "syd"},
	"eu":   {"ams", "arn", "cdg", "fra", "lhr", "mad", "otp", "waw"},
	"na":   {"atl", "bos", "den", "dfw", "ewr", "gdl", "iad", "lax", "mia", "ord", "phx", "qro", "sea", "sjc", "yul", "yyz"},
	"sa":   {"bog", "eze", "gig", "gru", "scl"},
	"us":   {"atl", "bos", "den", "dfw", "ewr", "iad", "lax", "mia", "ord", "phx", "sea", "sjc"},
	"usa":  {"atl", "bos", "den", "dfw", "ewr", "iad", "lax", "mia", "ord", "phx", "sea", "sjc"},
}

// Expand turns a parsed list into regions in order of preference; every is
// true if the list allows any other region after them ("any").
func Expand(names []string) (regions []root.Region, every bool) {
	for _, n := range names {
		switch group, ok := aliases[n]; {
		case n == "any":
			every = true
		case ok:
			regions = append(regions, group...)
		default:
			regions = append(regions, root.Region(n))
		}
	}
	return regions, every
}
