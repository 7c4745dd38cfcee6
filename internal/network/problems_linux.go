package network

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
)

// Problems looks for what on this host stands in the network's way, without
// changing anything. It needs root.
func Problems(ctx context.Context) []Problem {
	var found []Problem
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		found = append(found, Problem{
			What: "the kernel has no IPv6, which the private network needs",
			Mend: "remove ipv6.disable=1 from the kernel's command line and restart; the host needs no IPv6 address",
		})
	}
	c, err := nftables.New()
	if err != nil {
		return append(found, Problem{What: fmt.Sprintf("nf_tables does not answer: %v", err), Mend: "run as root, and load the module with: modprobe nf_tables"})
	}
	chains, err := c.ListChains()
	if err != nil {
		return append(found, Problem{What: fmt.Sprintf("nf_tables does not answer: %v", err), Mend: "load the module with: modprobe nf_tables"})
	}
	return append(found, forwardProblems(chains)...)
}

// forwardProblems finds the chains of other programs that drop what is
// forwarded: an accept in our table cannot help a packet that another drops.
func forwardProblems(chains []*nftables.Chain) []Problem {
	var found []Problem
	docker := false
	for _, c := range chains {
		docker = docker || c.Name == "DOCKER-USER"
	}
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if strings.HasPrefix(c.Table.Name, "roost_") {
			continue
		}
		family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[c.Table.Family]
		if family == "" {
			continue
		}
		p := Problem{What: fmt.Sprintf("the host's firewall drops forwarded packets (chain %s %s %s): machines do not reach the internet", family, c.Table.Name, c.Name)}
		tool := "iptables"
		if family == "ip6" {
			tool = "ip6tables"
		}
		switch {
		case docker && c.Name == "FORWARD":
			p.Mend = fmt.Sprintf("let Docker's chain pass them: %[1]s -I DOCKER-USER -i roost-+ -j ACCEPT; %[1]s -I DOCKER-USER -o roost-+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", tool)
		case c.Name == "FORWARD":
			p.Mend = fmt.Sprintf("with ufw: ufw route allow in on roost-+; else: %[1]s -I FORWARD -i roost-+ -j ACCEPT; %[1]s -I FORWARD -o roost-+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", tool)
		default:
			p.Mend = fmt.Sprintf(`nft insert rule %[1]s %[2]s %[3]s iifname "roost-*" accept; nft insert rule %[1]s %[2]s %[3]s oifname "roost-*" ct state established,related accept`, family, c.Table.Name, c.Name)
		}
		found = append(found, p)
	}
	return found
}
