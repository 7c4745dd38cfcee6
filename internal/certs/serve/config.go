package serve

import (
	"crypto/tls"
	"fmt"
	"slices"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
)

// suites are those of TLS 1.2; 1.3 has its own. The RSA ones are for uploaded
// certificates with such a key.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// defaultALPN is what a port offers that names nothing else.
var defaultALPN = []string{"h2", "http/1.1"}

// Config returns the TLS configuration of a listener. options says how the
// port of the app behind a name terminates TLS. Session tickets are sealed
// with keys that change by themselves and are shared by all its handshakes.
func (s *Server) Config(options func(name string) root.TLSOptions) *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: suites, NextProtos: defaultALPN}
	base.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		return s.configFor(base, h, options)
	}
	base.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return s.pick(h, root.TLSOptions{}) }
	return base
}

func (s *Server) configFor(base *tls.Config, h *tls.ClientHelloInfo, options func(name string) root.TLSOptions) (*tls.Config, error) {
	if len(h.SupportedProtos) == 1 && h.SupportedProtos[0] == certs.ALPN {
		c, err := s.TLSChallenge(h.Context(), h.ServerName)
		if err != nil {
			return nil, err
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{certs.ALPN}, Certificates: []tls.Certificate{*c}, SessionTicketsDisabled: true}, nil
	}
	o := options(certs.Normal(h.ServerName))
	if len(o.ALPN) == 0 && len(o.Versions) == 0 && !o.DefaultSelfSigned {
		return nil, nil // base as it is
	}
	c := base.Clone()
	c.GetConfigForClient = nil
	c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return s.pick(h, o) }
	if len(o.ALPN) > 0 {
		c.NextProtos = o.ALPN
	}
	if len(o.Versions) > 0 {
		if !slices.Contains(o.Versions, "TLSv1.2") {
			c.MinVersion = tls.VersionTLS13
		}
		if !slices.Contains(o.Versions, "TLSv1.3") {
			c.MaxVersion = tls.VersionTLS12
		}
	}
	return c, nil
}

func (s *Server) pick(h *tls.ClientHelloInfo, o root.TLSOptions) (*tls.Certificate, error) {
	if h.ServerName == "" {
		if o.DefaultSelfSigned {
			return s.SelfSigned("localhost")
		}
		return nil, fmt.Errorf("%w: the client named none", certs.ErrNoCertificate)
	}
	if certs.Normal(h.ServerName) == certs.OwnName {
		return s.SelfSigned(certs.OwnName)
	}
	c, err := s.Certificate(h.ServerName)
	if err != nil && o.DefaultSelfSigned {
		return s.SelfSigned(h.ServerName)
	}
	return c, err
}
