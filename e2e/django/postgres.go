package django

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

const (
	db = "shop-db"
	// password has what a URL has to escape.
	password = "p@ss/word:1"
	customer = "Zora Quimby" // of none of the purchases that a migration makes
)

func databaseURL(password string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("shop", password), Host: db + ".internal", Path: "/shop"}
	return u.String()
}

// postgres deploys the database, as an app without services.
func postgres(ctx context.Context, s *Shop) (string, error) {
	dir := filepath.Join(s.Dir, db)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(s.Source, "e2e/django/testdata/postgres"))); err != nil {
		return "", err
	}
	if _, err := s.CLI(ctx, "app", "create", db); err != nil {
		return "", err
	}
	if _, err := s.CLI(ctx, "secrets", "set", "--app", db, "POSTGRES_PASSWORD="+password); err != nil {
		return "", err
	}
	if _, err := s.CLI(ctx, "deploy", dir, "--yes", "--progress=plain"); err != nil {
		return "", err
	}
	list, err := s.api.List(ctx, db, machines.ListOptions{})
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%d machines, want 1", len(list))
	}
	if err != nil {
		return "", err
	}
	r, err := s.CLI(ctx, "machine", "exec", list[0].ID, "--app", db, "--", "postgres", "--version")
	return strings.TrimSpace(r.Stdout) + " at " + db + ".internal", err
}

// sharedDatabase moves the shop to Postgres, writes there, and deploys again.
func sharedDatabase(ctx context.Context, s *Shop) (string, error) {
	if _, err := s.CLI(ctx, "secrets", "set", "--stage", "--app", app, "DATABASE_URL="+databaseURL(password)); err != nil {
		return "", err
	}
	said, err := s.deploy(ctx)
	if err != nil {
		return "", err
	}
	if want := "Applying store.0002_fill... OK"; !strings.Contains(said, want) {
		return "", fmt.Errorf("the release command did not migrate the new database: what it said lacks %q:\n%s", want, said)
	}
	if err := s.onPostgres(ctx); err != nil {
		return "", err
	}
	path, err := s.buy(ctx)
	if err != nil {
		return "", err
	}
	if err := s.bought(ctx, path); err != nil {
		return "", err
	}
	// The worker counts what the web machine wrote, and the page shows it.
	err = eventually(ctx, func() (string, error) {
		_, body, err := s.get(ctx, "/purchases")
		if !bytes.Contains(body, []byte("2401 purchases; the worker counted")) {
			return "no report of the worker on the page", err
		}
		return "", err
	})
	if err != nil {
		return "", err
	}
	if err := s.edit("store/templates/store/home.html", sales, lead); err != nil {
		return "", err
	}
	start := time.Now()
	said, err = s.deploy(ctx)
	took := time.Since(start)
	if err != nil {
		return "", err
	}
	if want := "No migrations to apply"; !strings.Contains(said, want) {
		return "", fmt.Errorf("what the second deploy said lacks %q:\n%s", want, said)
	}
	if err := errors.Join(s.says(ctx, lead), s.bought(ctx, path)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s and its receipt read back, again after a deploy of %s", path, took.Round(10*time.Millisecond)), nil
}

// onPostgres asks the health check which database there is.
func (s *Shop) onPostgres(ctx context.Context) error {
	_, body, err := s.get(ctx, "/ht/")
	if err != nil {
		return err
	}
	var health struct{ Database string }
	if err := json.Unmarshal(body, &health); err != nil || health.Database != "postgresql" {
		return fmt.Errorf("the health check says: %s (%w)", body, err)
	}
	return nil
}

// purchaseOf is a program for `manage.py shell`: a purchase, the last one's
// items in it, and its path.
const purchaseOf = `
from django.utils import timezone
from store.models import Purchase
last = Purchase.objects.first()
new = Purchase.objects.create(customer=%q, city="Oslo", at=timezone.now(), total=last.total)
for item in last.items.all():
    item.pk, item.purchase = None, new
    item.save()
print("/purchases/%%d" %% new.pk)
`

// buy writes a purchase on the web machine.
func (s *Shop) buy(ctx context.Context) (path string, err error) {
	m, err := s.one(ctx, "web")
	if err != nil {
		return "", err
	}
	var r instance.Result
	_, err = s.awake(ctx, func() (err error) {
		r, err = s.CLI(ctx, "machine", "exec", m.ID, "--app", app, "--", "python3", "manage.py", "shell", "-c", fmt.Sprintf(purchaseOf, customer))
		return err
	})
	path = strings.TrimSpace(r.Stdout)
	if err == nil && !strings.HasPrefix(path, "/purchases/") {
		err = fmt.Errorf("no purchase was made: %s%s", r.Stdout, r.Stderr)
	}
	return path, err
}

// bought reads a purchase back: its page, and its receipt, which another
// machine makes.
func (s *Shop) bought(ctx context.Context, path string) error {
	_, body, err := s.get(ctx, path)
	if err != nil {
		return err
	}
	if !bytes.Contains(body, []byte(customer)) {
		return fmt.Errorf("%s does not name %s: %.600s", path, customer, body)
	}
	resp, pdf, err := s.get(ctx, path+"/receipt")
	if err != nil {
		return err
	}
	if resp.Header.Get("Serverless-Machine") == "" {
		return fmt.Errorf("the receipt came from %s: %s", servedBy(resp), resp.Header.Get("Serverless-Fallback"))
	}
	cmd := exec.CommandContext(ctx, "pdftotext", "-", "-")
	cmd.Stdin = bytes.NewReader(pdf)
	text, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(text, []byte(customer)) {
		return fmt.Errorf("the receipt does not name %s: %.600s (%w)", customer, text, err)
	}
	return nil
}

// wrongPassword is a secret with a slip in it.
func wrongPassword(ctx context.Context, s *Shop) (string, error) {
	if _, err := s.CLI(ctx, "secrets", "set", "--stage", "--app", app, "DATABASE_URL="+databaseURL("guess")); err != nil {
		return "", err
	}
	const text = `password authentication failed for user "shop"`
	err := s.refused(ctx, []string{text, "refuses its password"})
	if err == nil {
		err = s.onPostgres(ctx)
	}
	_, restored := s.CLI(ctx, "secrets", "set", "--stage", "--app", app, "DATABASE_URL="+databaseURL(password))
	return text, errors.Join(err, restored)
}
