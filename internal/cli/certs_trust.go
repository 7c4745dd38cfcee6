package cli

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
)

// trustStore is how a system is told to trust an authority: a file in a
// directory, and a command that takes it in.
type trustStore struct {
	dir     string
	command []string // after a file came
	undo    []string // after one went
}

// trustStores are those of Debian and its relatives, of Fedora's, and of Arch;
// the first whose directory exists is the system's.
var trustStores = []trustStore{
	{"/usr/local/share/ca-certificates", []string{"update-ca-certificates"}, []string{"update-ca-certificates", "--fresh"}},
	{"/etc/pki/ca-trust/source/anchors", []string{"update-ca-trust"}, []string{"update-ca-trust"}},
	{"/etc/ca-certificates/trust-source/anchors", []string{"update-ca-trust"}, []string{"update-ca-trust"}},
}

func newCertsTrustCmd(f *factory) *cobra.Command {
	var show, undo, yes bool
	cmd := &cobra.Command{
		Use: "trust", Short: "Trust the local authority on this computer, for HTTPS on private names", Args: cobra.NoArgs,
		Long: `Install the certificate of this platform's local authority, which issues for
*.localhost and other private names, into this computer's trust store (as root),
or print it. The authority can issue for private names only: its certificate
says so, and whoever trusts it trusts it for nothing else.

Browsers with a store of their own need it as well: Firefox in Settings,
Certificates, Authorities, Import; Chrome and Chromium on Linux, as the person
who uses them, with (certutil is in Debian's libnss3-tools)
  mkdir -p $HOME/.pki/nssdb
  certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n "Roost local" -i FILE`,
		Example: "  sudo roost certs trust\n  roost certs trust --print > roost-ca.crt\n  sudo roost certs trust --undo",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			a, err := c.Authority(cmd.Context())
			if err != nil {
				return err
			}
			if show {
				f.io.Printf("%s", a.Certificate)
				return nil
			}
			return f.trust(cmd.Context(), a.Certificate, trustStores, undo, yes)
		},
	}
	cmd.Flags().BoolVar(&show, "print", false, "print the certificate and install nothing")
	cmd.Flags().BoolVar(&undo, "undo", false, "take it out of the store again")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// trust puts an authority into the system's store, or takes it out.
func (f *factory) trust(ctx context.Context, certificate string, stores []trustStore, undo, yes bool) error {
	block, _ := pem.Decode([]byte(certificate))
	if block == nil {
		return errors.New("the platform sent no certificate")
	}
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	var store trustStore
	for _, s := range stores {
		if fi, err := os.Stat(s.dir); err == nil && fi.IsDir() {
			store = s
			break
		}
	}
	if store.dir == "" {
		return hintError{errors.New("this system's trust store is not known"), "print the certificate with `roost certs trust --print` and install it by hand (macOS: sudo security add-trusted-cert -d -k /Library/Keychains/System.keychain FILE)"}
	}
	sum := sha256.Sum256(block.Bytes)
	file := filepath.Join(store.dir, "roost-local-"+hex.EncodeToString(sum[:4])+".crt")
	if undo {
		if err := os.Remove(file); errors.Is(err, os.ErrNotExist) {
			f.io.Notef("The local authority was not installed here")
			return nil
		} else if err != nil {
			return asRoot(err)
		}
		if err := runStore(ctx, store.undo); err != nil {
			return err
		}
		f.io.Notef("%s is not trusted here any more", parsed.Subject.CommonName)
		return nil
	}
	if !yes {
		if !f.io.InTTY || !f.io.ErrTTY {
			return usageError{hintError{errors.New("nothing was installed: there is no terminal to ask on"), "confirm with --yes, or print it with --print"}}
		}
		ok, err := f.io.Confirm(fmt.Sprintf("Trust %q (SHA-256 %s, until %s) on this computer, for private names only?", parsed.Subject.CommonName, hex.EncodeToString(sum[:8]), parsed.NotAfter.Format(time.DateOnly)))
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("nothing was installed")
		}
	}
	if err := os.WriteFile(file, []byte(certificate), 0o644); err != nil { //nolint:gosec // public: the store's tools read it as anybody
		return asRoot(err)
	}
	if err := runStore(ctx, store.command); err != nil {
		return err
	}
	f.io.Notef("%s is trusted here now (%s); browsers with a store of their own need it as well: see roost certs trust --help", parsed.Subject.CommonName, file)
	return nil
}

func asRoot(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return hintError{err, "run it as root: sudo roost certs trust"}
	}
	return err
}

func runStore(ctx context.Context, command []string) error {
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", command[0], err, out)
	}
	return nil
}
