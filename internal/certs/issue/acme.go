package issue

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/roost-run/roost/internal/certs"
)

// httpTimeout bounds one request to the authority.
const httpTimeout = 30 * time.Second

// authority is certmagic's issuer: an ACME account at one authority. certmagic
// has one of its own, which opens ports for challenges; ours are answered by
// the edges.
type authority struct {
	m      *Manager
	client *http.Client
}

var _ certmagic.Issuer = (*authority)(nil)

func newAuthority(m *Manager) *authority {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: m.o.Roots}
	return &authority{m: m, client: &http.Client{Transport: t, Timeout: httpTimeout}}
}

// IssuerKey names the authority in storage.
func (a *authority) IssuerKey() string {
	u, err := url.Parse(a.m.o.Directory)
	if err != nil || u.Host == "" {
		return "acme"
	}
	return strings.Trim(strings.NewReplacer("/", "-", ":", "-").Replace(u.Host+u.Path), "-")
}

// Issue carries out one order.
func (a *authority) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	client := &acmez.Client{
		Client: &acme.Client{
			Directory: a.m.o.Directory, HTTPClient: a.client, UserAgent: "roost", Logger: a.m.o.Log,
			PollTimeout: attemptTimeout, PollInterval: a.m.o.PollInterval,
		},
		ChallengeSolvers: map[string]acmez.Solver{
			acme.ChallengeTypeHTTP01:    solver{a.m},
			acme.ChallengeTypeTLSALPN01: solver{a.m},
		},
	}
	account, err := a.account(ctx, client)
	if err != nil {
		return nil, err
	}
	chain, err := a.order(ctx, client, account, csr)
	if p, ok := errors.AsType[acme.Problem](err); ok && p.Type == acme.ProblemTypeAccountDoesNotExist {
		// The authority forgot us, as test authorities do: begin again.
		if err := (storage{a.m}).Delete(ctx, a.accountKey()); err != nil {
			return nil, err
		}
		if account, err = a.account(ctx, client); err != nil {
			return nil, err
		}
		chain, err = a.order(ctx, client, account, csr)
	}
	if err != nil {
		return nil, err
	}
	return &certmagic.IssuedCertificate{Certificate: chain, Metadata: map[string]string{"directory": a.m.o.Directory}}, nil
}

func (a *authority) order(ctx context.Context, client *acmez.Client, account acme.Account, csr *x509.CertificateRequest) ([]byte, error) {
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, err
	}
	chains, err := client.ObtainCertificate(ctx, params)
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the authority sent no certificate")
	}
	return chains[0].ChainPEM, nil // the one it prefers
}

// storedAccount is the account as it is kept, sealed.
type storedAccount struct {
	Account acme.Account
	Key     string // PEM
}

func (a *authority) accountKey() string { return "acme/" + a.IssuerKey() + "/account.json" }

// account returns our account at the authority, made at the first call.
func (a *authority) account(ctx context.Context, client *acmez.Client) (acme.Account, error) {
	s := storage{a.m}
	lock := "acme_account_" + a.IssuerKey()
	if err := s.Lock(ctx, lock); err != nil {
		return acme.Account{}, err
	}
	defer func() {
		if err := s.Unlock(context.WithoutCancel(ctx), lock); err != nil {
			a.m.o.Log.Warn("a lock was not given back", "err", err)
		}
	}()
	if data, err := s.Load(ctx, a.accountKey()); err == nil {
		var kept storedAccount
		if err := json.Unmarshal(data, &kept); err != nil {
			return acme.Account{}, fmt.Errorf("account at the certificate authority: %w", err)
		}
		key, err := certmagic.PEMDecodePrivateKey([]byte(kept.Key))
		if err != nil {
			return acme.Account{}, fmt.Errorf("account at the certificate authority: %w", err)
		}
		kept.Account.PrivateKey = key
		return kept.Account, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return acme.Account{}, err
	}
	// Whoever sets up the host agrees to the authority's terms: the setting's
	// documentation says so.
	account := acme.Account{TermsOfServiceAgreed: true, PrivateKey: crypto.Signer(key)}
	if a.m.o.Email != "" {
		account.Contact = []string{"mailto:" + a.m.o.Email}
	}
	if account, err = client.NewAccount(ctx, account); err != nil {
		return acme.Account{}, fmt.Errorf("register with the certificate authority: %w", err)
	}
	keyPEM, err := certmagic.PEMEncodePrivateKey(key)
	if err != nil {
		return acme.Account{}, err
	}
	data, err := json.Marshal(storedAccount{account, string(keyPEM)})
	if err != nil {
		return acme.Account{}, err
	}
	return account, s.Store(ctx, a.accountKey(), data)
}

// solver keeps challenges where every control finds them.
type solver struct{ m *Manager }

// Present stores what has to be answered; every edge can be asked from here on.
func (s solver) Present(ctx context.Context, c acme.Challenge) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return storage(s).Store(ctx, challengeKey(c.Type, c.Identifier.Value), data)
}

// CleanUp forgets it.
func (s solver) CleanUp(ctx context.Context, c acme.Challenge) error {
	return storage(s).Delete(context.WithoutCancel(ctx), challengeKey(c.Type, c.Identifier.Value))
}

func challengeKey(kind, host string) string { return "challenges/" + host + "/" + kind }

func (m *Manager) challenge(ctx context.Context, kind, host string) (acme.Challenge, error) {
	var c acme.Challenge
	data, err := storage{m}.Load(ctx, challengeKey(kind, host))
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(data, &c)
}

// tlsAnswer makes the certificate that answers a TLS-ALPN-01 challenge.
func tlsAnswer(c acme.Challenge) (certs.TLSAnswer, error) {
	cert, err := acmez.TLSALPN01ChallengeCert(c)
	if err != nil {
		return certs.TLSAnswer{}, err
	}
	return certs.EncodePair(cert)
}
