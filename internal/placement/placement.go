// Package placement decides on which host a new machine lives. It is pure: a
// request and a snapshot in, a host or the reasons out. Control calls it; it
// reads no clock and knows nothing of addresses or images.
//
// A machine's memory is not counted here: a sleeping machine needs none, and
// waking ones are admitted by their host against what is free then.
package placement

import (
	"fmt"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
)

// Request is what the new machine needs.
type Request struct {
	App    root.AppName
	Region string      // "", a code or alias, or a comma list in order of preference
	Here   root.Region // the region of the caller's host: what "" prefers
	Arch   string      // "" any
	Memory root.Bytes
}

// Rejection says why a host was not taken.
type Rejection struct {
	Host   root.HostID
	Reason string
}

// aliases are the names for parts of the world, by Fly's codes of regions.
var aliases = map[string][]string{
	"any":  nil,
	"apac": {"bom", "nrt", "sin", "syd", "hkg"},
	"eu":   {"ams", "arn", "cdg", "fra", "lhr", "mad", "otp", "waw"},
	"na":   {"bos", "den", "dfw", "ewr", "iad", "lax", "mia", "ord", "phx", "qro", "sea", "sjc", "yul", "yyz", "atl", "gdl"},
	"sa":   {"bog", "eze", "gig", "gru", "scl"},
	"us":   {"bos", "den", "dfw", "ewr", "iad", "lax", "mia", "ord", "phx", "sea", "sjc", "atl"},
	"usa":  {"bos", "den", "dfw", "ewr", "iad", "lax", "mia", "ord", "phx", "sea", "sjc", "atl"},
}

// MaxMachinesPerHost bounds the machines of one host: its private IPv4 range
// has room for no more, and their indexes need some to be free.
const MaxMachinesPerHost = 30_000

// Place picks a host. Its error has kind Invalid for a region that cannot be,
// Exhausted, code "insufficient_capacity", if no host takes the machine; the
// message then has the reason of each.
func Place(r Request, s *root.Snapshot) (*root.Host, error) {
	wanted, err := parseRegions(r.Region)
	if err != nil {
		return nil, err
	}
	hosts := slices.Collect(s.Hosts())
	count := map[root.HostID]int{}
	same := map[root.HostID]int{}
	for m := range s.AllMachines() {
		count[m.Host]++
		if m.App == r.App {
			same[m.Host]++
		}
	}
	slices.SortFunc(hosts, func(a, b *root.Host) int {
		if r.Region == "" && (a.Region == r.Here) != (b.Region == r.Here) {
			if a.Region == r.Here {
				return -1
			}
			return 1
		}
		// Spread an app first, then machines.
		if d := same[a.ID] - same[b.ID]; d != 0 {
			return d
		}
		if d := count[a.ID] - count[b.ID]; d != 0 {
			return d
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	var rejected []Rejection
	for _, want := range wanted {
		rejected = rejected[:0]
		for _, h := range hosts {
			if reason := reject(r, want, h, count[h.ID]); reason != "" {
				rejected = append(rejected, Rejection{Host: h.ID, Reason: reason})
				continue
			}
			return h, nil
		}
	}
	return nil, &root.Error{Kind: root.Exhausted, Code: "insufficient_capacity", Message: explain(r, s, rejected)}
}

func reject(r Request, want string, h *root.Host, machines int) string {
	switch {
	case !matches(want, h.Region):
		return fmt.Sprintf("it is in region %s", h.Region)
	case r.Arch != "" && h.Arch != "" && r.Arch != h.Arch:
		return fmt.Sprintf("it is %s, the image is %s", h.Arch, r.Arch)
	case h.Memory > 0 && r.Memory > h.Memory:
		return fmt.Sprintf("machines may use %s there together, this one asks for %s", h.Memory, r.Memory)
	case machines >= MaxMachinesPerHost:
		return fmt.Sprintf("it has %d machines already", machines)
	}
	return ""
}

func matches(want string, region root.Region) bool {
	members, alias := aliases[want]
	switch {
	case want == "" || want == "any":
		return true
	case alias && slices.Contains(members, string(region)):
		return true
	}
	return want == string(region)
}

// parseRegions splits a list of preferences; "" is one wish without limits.
func parseRegions(s string) ([]string, error) {
	if strings.TrimSpace(s) == "" {
		return []string{""}, nil
	}
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if _, alias := aliases[part]; !alias {
			if _, err := root.ParseRegion(part); err != nil {
				return nil, err
			}
		}
		out = append(out, part)
	}
	return out, nil
}

// maxReasons keeps the message of a large cluster readable.
const maxReasons = 5

func explain(r Request, s *root.Snapshot, rejected []Rejection) string {
	if len(rejected) == 0 {
		return "insufficient capacity: no host has joined yet"
	}
	var regions []string
	for h := range s.Hosts() {
		if !slices.Contains(regions, string(h.Region)) {
			regions = append(regions, string(h.Region))
		}
	}
	slices.Sort(regions)
	var why []string
	for i, rej := range rejected {
		if i == maxReasons {
			why = append(why, fmt.Sprintf("and %d more", len(rejected)-i))
			break
		}
		why = append(why, fmt.Sprintf("host %s: %s", rej.Host, rej.Reason))
	}
	wish := "insufficient capacity"
	if r.Region != "" {
		wish += fmt.Sprintf(" in region %q", r.Region)
	}
	return fmt.Sprintf("%s (%s); regions with a host: %s", wish, strings.Join(why, "; "), strings.Join(regions, ", "))
}
