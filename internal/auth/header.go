package auth

import "strings"

// maxHeader bounds the Authorization header that is looked at: lists of
// foreign tokens get long.
const maxHeader = 16 << 10

// FromHeader returns our token in the values of an Authorization header, or ""
// when there is none; foreign reports whether there was something else. Schemes
// ("Bearer", "FlyV1") may stand in any case, doubled or not at all, and a value
// may be a list with commas, of which the first token of ours counts (Machines
// API, "Authentication").
func FromHeader(values []string) (token string, foreign bool) {
	for _, value := range values {
		if len(value) > maxHeader {
			foreign = true
			continue
		}
		for item := range strings.SplitSeq(value, ",") {
			item = stripSchemes(item)
			if strings.HasPrefix(item, Prefix) {
				return item, false
			}
			foreign = foreign || item != ""
		}
	}
	return "", foreign
}

func stripSchemes(s string) string {
	s = strings.TrimSpace(s)
	for {
		scheme, rest, found := strings.Cut(s, " ")
		if !found {
			if isScheme(s) {
				return ""
			}
			return s
		}
		if !isScheme(scheme) {
			return s
		}
		s = strings.TrimSpace(rest)
	}
}

func isScheme(s string) bool {
	return strings.EqualFold(s, "Bearer") || strings.EqualFold(s, "FlyV1")
}
