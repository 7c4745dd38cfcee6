package roost

import (
	"strings"
	"time"
)

// Hostname is a name of somebody's own that leads to an app.
type Hostname struct {
	Name      string // "shop.example.com", or "*.example.com" for one label in the star's place
	App       AppName
	ACME      bool // a certificate is to be obtained and renewed
	CreatedAt time.Time
}

// Upload is an uploaded certificate of a hostname.
type Upload struct {
	Hostname  string
	Chain     string // PEM
	Key       []byte // PEM, sealed
	CreatedAt time.Time
}

// CertAttempt is how the last attempt to obtain a certificate went. The zero
// value: none was made, or it succeeded.
type CertAttempt struct {
	Hostname string
	At       time.Time
	Failures int       // in a row
	Next     time.Time // when the next attempt may be made
	Code     string    // "dns", "unreachable", "rate_limited", "authority", "internal"
	Message  string    // what happened, for people
	Remedy   string    // what to do
}

const maxHostname = 253 // RFC 1035, section 2.3.4, without the dot at the end

// ParseHostname checks that s, in ASCII, can be a hostname of an app's own, and
// returns it in lower case without a dot at the end. Names in other scripts
// have to be in their ASCII form already ("xn--...").
func ParseHostname(s string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(strings.TrimSpace(s), "."))
	rest := strings.TrimPrefix(name, "*.")
	bad := name == "" || len(name) > maxHostname || !strings.Contains(rest, ".")
	digits := false
	for label := range strings.SplitSeq(rest, ".") {
		digits = strings.Trim(label, "0123456789") == ""
		if len(label) > maxLabel || !isLabel(strings.ReplaceAll(label, "_", "x")) {
			bad = true
		}
	}
	if bad || digits {
		return "", Errorf(Invalid, "%q is not a hostname: use a name such as shop.example.com, or *.example.com for every name one level below", clip(s))
	}
	return name, nil
}
