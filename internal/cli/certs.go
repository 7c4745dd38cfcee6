package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newCertsCmd(f *factory) *cobra.Command {
	return group("certs", "Give an app hostnames of its own, and HTTPS for them", []string{"cert", "certificates"},
		newCertsAddCmd(f), newCertsListCmd(f), newCertsShowCmd(f), newCertsCheckCmd(f), newCertsImportCmd(f), newCertsRemoveCmd(f), newCertsTrustCmd(f))
}

func newCertsAddCmd(f *factory) *cobra.Command {
	var asJSON bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "add HOSTNAME", Aliases: []string{"create"}, Short: "Make a hostname lead to an app, and obtain a certificate for it", Args: cobra.ExactArgs(1),
		Long: `Make a hostname lead to an app. For a public name a certificate is obtained by
ACME (at Let's Encrypt unless the setting acme_ca says otherwise) as soon as the
name's A and AAAA records lead to this host, and renewed by itself. Where
the platform's own domain is a public one, an app gets HTTPS for its name there
in the same way: roost certs add shop.apps.example.com --app shop. A private
name (shop.lan, shop.internal) gets one of the local authority, which those who
use it have to trust; see roost certs trust.`,
		Example: "  roost certs add shop.example.com --app shop\n  roost certs add '*.shop.lan' --app shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			cert, err := c.AddCertificate(cmd.Context(), app, args[0])
			if err != nil {
				return err
			}
			f.io.Notef("%s leads to app %s", cert.Hostname, app)
			if wait > 0 && cert.ACMERequested && !cert.Configured {
				if cert, err = awaitCertificate(cmd.Context(), f, c, app, cert.Hostname, wait); err != nil {
					return err
				}
			}
			if asJSON {
				return f.io.JSON(cert)
			}
			f.describeCertificate(cert)
			if cert.ACMERequested && !cert.Configured {
				f.io.Notef("See how it goes with: roost certs check %s -a %s", cert.Hostname, app)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long for the certificate (default: do not wait)")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// certPoll is how often a certificate under way is asked for.
const certPoll = 500 * time.Millisecond

// awaitCertificate waits until a certificate is there or was refused.
func awaitCertificate(ctx context.Context, f *factory, c *client.Client, app, hostname string, most time.Duration) (machines.Certificate, error) {
	f.io.Notef("Waiting for the certificate (at most %s)", most)
	waiting, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("there is no certificate after %s", most))
	defer cancel()
	for {
		cert, err := c.Certificate(waiting, app, hostname)
		if err == nil && cert.Configured {
			return cert, nil
		}
		if err == nil && len(cert.ValidationErrors) > 0 {
			v := cert.ValidationErrors[0]
			return cert, hintError{errors.New(v.Message), v.Remediation}
		}
		if err != nil && waiting.Err() == nil {
			return cert, err
		}
		select {
		case <-waiting.Done():
			return cert, hintError{context.Cause(waiting), fmt.Sprintf("it is tried for on: roost certs check %s -a %s", hostname, app)}
		case <-time.After(certPoll):
		}
	}
}

func newCertsListCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List an app's hostnames", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			list, err := c.Certificates(cmd.Context(), app)
			if err != nil {
				return err
			}
			return printList(f, asJSON, list, "App "+app+" has no hostnames of its own yet; `roost certs add HOSTNAME` gives it one",
				[]string{"hostname", "status", "certificate", "added"}, func(s machines.CertificateSummary) []string {
					return []string{s.Hostname, s.Status, certificateSource(s.HasCustomCertificate, s.HasFlyCertificate, s.Private), f.io.Time(s.CreatedAt)}
				})
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func certificateSource(uploaded, obtained, private bool) string {
	switch {
	case uploaded:
		return "uploaded"
	case obtained:
		return "obtained"
	case private:
		return "local authority"
	}
	return "none"
}

func newCertsShowCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show HOSTNAME", Short: "Show a hostname and its certificates", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.showCertificate(cmd.Context(), args[0], asJSON, (*client.Client).Certificate, false)
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func newCertsCheckCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check HOSTNAME", Short: "Check where a hostname leads, and say what is wrong", Args: cobra.ExactArgs(1),
		Long: "Check where a hostname leads and what its certificates say. Where something is in\nthe way, it says what was seen and what to do, and ends with exit code 1.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.showCertificate(cmd.Context(), args[0], asJSON, (*client.Client).CheckCertificate, true)
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// errUnsound ends a check that found something.
var errUnsound = errors.New("HTTPS does not work for this hostname yet")

func (f *factory) showCertificate(ctx context.Context, hostname string, asJSON bool, ask func(*client.Client, context.Context, string, string) (machines.Certificate, error), judge bool) error {
	app, c, err := f.target()
	if err != nil {
		return err
	}
	cert, err := ask(c, ctx, app, hostname)
	if err != nil {
		return err
	}
	if asJSON {
		return f.io.JSON(cert)
	}
	f.describeCertificate(cert)
	if judge && (!cert.Configured || len(cert.ValidationErrors) > 0) {
		return errUnsound
	}
	return nil
}

// describeCertificate prints what is known of a hostname, a line each.
func (f *factory) describeCertificate(c machines.Certificate) {
	line := func(name, format string, args ...any) {
		if f.io.OutTTY {
			f.io.Printf("%-12s %s\n", name, fmt.Sprintf(format, args...))
		} else {
			f.io.Printf("%s\t%s\n", strings.ToLower(name), fmt.Sprintf(format, args...))
		}
	}
	line("Hostname", "%s", c.Hostname)
	status := c.Status
	if c.Status != "active" && c.ACMERequested && len(c.ValidationErrors) == 0 {
		status += " (a certificate is being obtained)"
	}
	line("Status", "%s", status)
	for i, cert := range c.Certificates {
		from, use := "obtained", "in use"
		if cert.Source == "custom" {
			from = "uploaded"
		}
		if i > 0 {
			use = "not in use"
		}
		line("Certificate", "%s, %s, of %s, expires %s", from, use, cert.Issuer, cert.ExpiresAt.Format(time.DateOnly))
	}
	if c.Private && len(c.Certificates) == 0 {
		line("Certificate", "of the local authority; trust it with: roost certs trust")
	}
	if r := c.DNSRecords; r != nil {
		addresses := slices.Concat(r.A, r.AAAA)
		if len(addresses) == 0 {
			addresses = []string{"nothing"}
		}
		via := ""
		if len(r.CNAME) > 0 {
			via = " by way of " + strings.Join(r.CNAME, ", ")
		}
		line("Leads to", "%s%s", strings.Join(addresses, ", "), via)
		if own := slices.Concat(c.DNSRequirements.A, c.DNSRequirements.AAAA); len(own) > 0 {
			line("This host", "%s", strings.Join(own, ", "))
		}
	}
	if c.Warning != "" {
		f.io.Notef("Warning: %s", c.Warning)
	}
	for _, v := range c.ValidationErrors {
		line("Problem", "%s", v.Message)
		if v.Remediation != "" {
			line("To do", "%s", v.Remediation)
		}
	}
	if c.RateLimitedUntil != nil {
		line("Next try", "%s", c.RateLimitedUntil.Format(time.RFC3339))
	}
}

func newCertsImportCmd(f *factory) *cobra.Command {
	var chain, key string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "import HOSTNAME", Short: "Upload a certificate with its key; it is used before an obtained one", Args: cobra.ExactArgs(1),
		Long:    "Upload a certificate with its key, both PEM: the certificate first, then those\nthat signed it. The key is sealed and never shown again. It is not renewed by\nitself; upload the next one in time.",
		Example: "  roost certs import shop.example.com --cert fullchain.pem --key privkey.pem --app shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := f.appName()
			if err != nil {
				return err
			}
			if chain == "" || key == "" {
				return usageError{errors.New("name both files: --cert FILE --key FILE")}
			}
			chainPEM, err := os.ReadFile(chain)
			if err != nil {
				return err
			}
			keyPEM, err := os.ReadFile(key)
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			cert, err := c.ImportCertificate(cmd.Context(), app, args[0], string(chainPEM), string(keyPEM))
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(cert)
			}
			f.io.Notef("%s leads to app %s and has the uploaded certificate", cert.Hostname, app)
			f.describeCertificate(cert)
			return nil
		},
	}
	cmd.Flags().StringVar(&chain, "cert", "", "file with the certificate and its chain, PEM")
	cmd.Flags().StringVar(&chain, "fullchain", "", "the same as --cert")
	cmd.Flags().StringVar(&key, "key", "", "file with the private key, PEM")
	cmd.Flags().StringVar(&key, "private-key", "", "the same as --key")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func newCertsRemoveCmd(f *factory) *cobra.Command {
	var yes, uploaded bool
	cmd := &cobra.Command{
		Use: "remove HOSTNAME", Aliases: []string{"delete", "rm"}, Short: "Take a hostname away from an app, with its certificates", Args: cobra.ExactArgs(1),
		Example: "  roost certs remove shop.example.com --app shop --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			what := fmt.Sprintf("Take %s away from app %s? Requests to it will find nothing.", args[0], app)
			if uploaded {
				what = fmt.Sprintf("Forget the uploaded certificate of %s?", args[0])
			}
			if err := f.confirm(yes, what); err != nil {
				return err
			}
			if uploaded {
				cert, err := c.RemoveImportedCertificate(cmd.Context(), app, args[0])
				if err != nil {
					return err
				}
				if cert.Warning != "" {
					f.io.Notef("Warning: %s", cert.Warning)
				}
				f.io.Notef("The uploaded certificate of %s is gone", cert.Hostname)
				return nil
			}
			if err := c.RemoveCertificate(cmd.Context(), app, args[0]); err != nil {
				return err
			}
			f.io.Notef("%s does not lead to app %s any more", args[0], app)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&uploaded, "uploaded", false, "forget only the uploaded certificate; the hostname stays")
	return f.onApp(cmd)
}
