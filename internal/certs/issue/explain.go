package issue

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// Codes of an attempt that failed.
const (
	CodeDNS         = "dns"          // the name does not lead here, or nowhere
	CodeUnreachable = "unreachable"  // it does, but our answer was not received
	CodeRateLimited = "rate_limited" // by the authority
	CodeRefused     = "refused"      // by the authority, for good
	CodeAuthority   = "authority"    // it could not be reached or did not work
)

const rateLimitWait = time.Hour

// explain says in words for people why no certificate was obtained, and what to
// do; wait is what the authority asks for at least.
func explain(host string, err error) (code, message, remedy string, wait time.Duration) {
	p, ok := errors.AsType[acme.Problem](err)
	if !ok {
		if ne, ok := errors.AsType[net.Error](err); ok {
			return CodeAuthority, "the certificate authority could not be reached: " + ne.Error(), "Check that this host can reach it; it is tried again by itself.", 0
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return CodeAuthority, "the certificate authority took too long to answer", "It is tried again by itself.", 0
		}
		return CodeAuthority, innermost(err), "It is tried again by itself; see the log of roost control.", 0
	}
	detail := p.Detail
	for _, s := range p.Subproblems {
		detail += "; " + s.Detail
	}
	// Authorities differ in the types they use; for these two the text says more.
	kind, lower := p.Type, strings.ToLower(detail)
	switch {
	case strings.Contains(lower, "could not resolve") || strings.Contains(lower, "nxdomain"):
		kind = acme.ProblemTypeDNS
	case strings.Contains(lower, "failed to connect") || strings.Contains(lower, "connection refused"):
		kind = acme.ProblemTypeConnection
	}
	switch kind {
	case acme.ProblemTypeDNS, acme.ProblemTypeCAA:
		if kind == acme.ProblemTypeCAA {
			return CodeRefused, "a CAA record of " + host + " forbids this authority: " + detail, "Change the CAA record, or set acme_ca to the authority that it allows.", 0
		}
		return CodeDNS, "the authority could not look up " + host + ": " + detail, "Add an A or AAAA record for " + host + " with an address of this host.", 0
	case acme.ProblemTypeConnection:
		return CodeUnreachable, "the authority could not connect: " + detail, "Ports 80 and 443 of the addresses of " + host + " must reach this host from the internet: check firewalls and that the records point here.", 0
	case acme.ProblemTypeUnauthorized, acme.ProblemTypeIncorrectResponse, acme.ProblemTypeTLS:
		return CodeDNS, "somebody else answered for " + host + ": " + detail, "Its A and AAAA records (all of them) must point to this host, without another proxy in between.", 0
	case acme.ProblemTypeRateLimited:
		return CodeRateLimited, "the authority allows no more attempts for now: " + detail, "Wait: it is tried again by itself.", rateLimitWait
	case acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedIdentifier:
		return CodeRefused, "the authority does not issue for " + host + ": " + detail, "Upload a certificate with: roost certs import " + host + " --cert FILE --key FILE", 0
	}
	if detail == "" {
		detail = p.Error()
	}
	return CodeAuthority, "the authority refused: " + detail, "It is tried again by itself.", 0
}

// innermost is the text of the error at the bottom.
func innermost(err error) string {
	for e := errors.Unwrap(err); e != nil; e = errors.Unwrap(e) {
		err = e
	}
	return strings.TrimSpace(err.Error())
}
