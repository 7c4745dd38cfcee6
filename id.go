package roost

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Typed names, so that one cannot be passed for another. Each is parsed once,
// where it enters the program.
type (
	// OrgSlug names an organisation: "personal".
	OrgSlug string
	// AppName names an app and is a DNS label: "my-shop". Unique in the cluster.
	AppName string
	// NetworkName names a private network of an organisation: "default".
	NetworkName string
	// MachineID is 14 lower-case hex digits, for the machine's life: "148e1234c56789".
	MachineID string
	// InstanceID is a ULID, new for each version of a machine: "01J0ABCDEFGHJKMNPQRSTVWXYZ".
	InstanceID string
	// Region is a short code: "loc", "fra".
	Region string
	// HostID is 8 lower-case hex digits, for the host's life: "5e1f00aa".
	HostID string
	// Digest is the content address of an image: "sha256:" and 64 hex digits.
	Digest string
)

// DefaultOrg and DefaultNetwork exist in every cluster.
const (
	DefaultOrg     OrgSlug     = "personal"
	DefaultNetwork NetworkName = "default"
	DefaultRegion  Region      = "loc"
)

const maxLabel = 63 // RFC 1035, section 2.3.4

// ParseAppName checks that s can be an app's name: a DNS label of lower-case
// letters, digits and inner dashes.
func ParseAppName(s string) (AppName, error) {
	if s == "" {
		return "", Errorf(Invalid, "app name is missing")
	}
	if len(s) > maxLabel || !isLabel(s) {
		return "", Errorf(Invalid, "app name %q is not valid: use up to %d lower-case letters, digits and inner dashes", clip(s), maxLabel)
	}
	return AppName(s), nil
}

// ParseOrgSlug checks an organisation's slug, by the same rule as an app's name.
func ParseOrgSlug(s string) (OrgSlug, error) {
	if len(s) > maxLabel || !isLabel(s) {
		return "", Errorf(Invalid, "organisation %q is not valid: use up to %d lower-case letters, digits and inner dashes", clip(s), maxLabel)
	}
	return OrgSlug(s), nil
}

// ParseNetworkName checks a network's name: letters, digits and dashes,
// beginning with a letter. Empty means DefaultNetwork.
func ParseNetworkName(s string) (NetworkName, error) {
	if s == "" {
		return DefaultNetwork, nil
	}
	bad := len(s) > maxLabel || !isLetter(s[0])
	for i := 0; i < len(s) && !bad; i++ {
		bad = !isLetter(s[i]) && !isDigit(s[i]) && s[i] != '-'
	}
	if bad {
		return "", Errorf(Invalid, "network name %q is not valid: use letters, digits and dashes, beginning with a letter", clip(s))
	}
	return NetworkName(s), nil
}

// ParseMachineID checks the form of a machine's id.
func ParseMachineID(s string) (MachineID, error) {
	if len(s) != 14 || strings.Trim(s, "0123456789abcdef") != "" {
		return "", Errorf(Invalid, "invalid machine ID, '%s'", clip(s))
	}
	return MachineID(s), nil
}

// MachineIDFrom makes an id from 7 random bytes.
func MachineIDFrom(random [7]byte) MachineID { return MachineID(hex.EncodeToString(random[:])) }

// ParseRegion checks a region's code.
func ParseRegion(s string) (Region, error) {
	bad := s == "" || len(s) > 20
	for i := 0; i < len(s) && !bad; i++ {
		bad = !(s[i] >= 'a' && s[i] <= 'z') && !isDigit(s[i]) && s[i] != '-'
	}
	if bad {
		return "", Errorf(Invalid, "region %q is not valid: use up to 20 lower-case letters, digits and dashes", clip(s))
	}
	return Region(s), nil
}

// Bytes is a size in bytes.
type Bytes int64

// Units of Bytes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// MiB returns the size in whole mebibytes, rounded down.
func (b Bytes) MiB() int { return int(b / MiB) }

// String prints the size in the largest unit that keeps it readable.
func (b Bytes) String() string {
	switch {
	case b >= GiB:
		return fmt.Sprintf("%.1f GB", float64(b)/float64(GiB))
	case b >= MiB:
		return fmt.Sprintf("%.1f MB", float64(b)/float64(MiB))
	case b >= KiB:
		return fmt.Sprintf("%.1f KB", float64(b)/float64(KiB))
	}
	return fmt.Sprintf("%d B", int64(b))
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

func isLabel(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !(s[i] >= 'a' && s[i] <= 'z') && !isDigit(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}

// clip keeps hostile input out of messages.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
