package controlplane

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/certs/issue"
	"github.com/roost-run/roost/internal/seal"
)

// openCerts brings up what keeps certificates, and leaves the local authority
// where people find it.
func (p *process) openCerts(ctx context.Context, keys *seal.Keyring) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	o := issue.Options{Store: p.store, Keys: keys, Host: p.host, Run: newID(), Name: name, Domain: p.cfg.Domain, Email: p.cfg.ACMEEmail, Log: p.log}
	if p.cfg.ACMEDirectory != "off" {
		o.Directory = p.cfg.ACMEDirectory
	}
	if p.cfg.ACMERoot != "" {
		data, err := os.ReadFile(p.cfg.ACMERoot)
		if err != nil {
			return fmt.Errorf("acme_root: %w", err)
		}
		if o.Roots = x509.NewCertPool(); !o.Roots.AppendCertsFromPEM(data) {
			return root.Errorf(root.Invalid, "acme_root: there is no certificate in %s", p.cfg.ACMERoot)
		}
	}
	if p.certs, err = issue.Open(ctx, o); err != nil {
		return err
	}
	p.closers = append(p.closers, p.certs.Close)
	return atomicfile.Write(p.cfg.LocalRoot(), []byte(p.certs.Root()), 0o644)
}
