package statics

import (
	"strconv"
	"strings"
)

// variant is a compressed form of a file that the image may have beside it.
type variant struct{ coding, suffix string }

// variants in the order in which they are preferred, all else being equal.
var variants = [...]variant{{"zstd", ".zst"}, {"br", ".br"}, {"gzip", ".gz"}}

// choose returns the one of some variants that an Accept-Encoding header (RFC 9110, section
// 12.5.3) likes best of those in the set, or nil for the plain file.
func choose(accept string, among []variant, set uint8) *variant {
	if set == 0 || accept == "" {
		return nil
	}
	var best *variant
	bestQ := 0.0
	for i := range among {
		if set&(1<<i) == 0 {
			continue
		}
		if q := quality(accept, among[i].coding); q > bestQ {
			best, bestQ = &among[i], q
		}
	}
	return best
}

// quality is the weight of a coding in an Accept-Encoding header, 0 to 1.
func quality(accept, coding string) float64 {
	q := 0.0
	for item := range strings.SplitSeq(accept, ",") {
		name, parameters, _ := strings.Cut(item, ";")
		name = strings.TrimSpace(name)
		exact := strings.EqualFold(name, coding) || coding == "gzip" && strings.EqualFold(name, "x-gzip")
		if !exact && name != "*" {
			continue
		}
		weight := 1.0
		if key, value, ok := strings.Cut(strings.TrimSpace(parameters), "="); ok && strings.EqualFold(strings.TrimSpace(key), "q") {
			w, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil || w < 0 || w > 1 {
				w = 0
			}
			weight = w
		}
		if exact {
			return weight
		}
		q = weight
	}
	return q
}
