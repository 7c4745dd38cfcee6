package django

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

func statics(ctx context.Context, s *Shop) (string, error) {
	before, err := s.asleep(ctx)
	if err != nil {
		return "", err
	}
	want, err := os.ReadFile(filepath.Join(s.dir, "store/static/store/style.css"))
	if err != nil {
		return "", err
	}
	var took time.Duration
	for range 20 {
		start := time.Now()
		resp, body, err := s.get(ctx, s.css)
		if err != nil {
			return "", err
		}
		took = time.Since(start)
		if !bytes.Equal(body, want) || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/css") {
			return "", fmt.Errorf("%s is not the style sheet: %s, %.100s", s.css, resp.Header.Get("Content-Type"), body)
		}
	}
	list, err := s.list(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range list {
		if since, slept := before[m.ID]; slept && (m.State != machines.StateSuspended || !m.UpdatedAt.Equal(since)) {
			return "", fmt.Errorf("machine %s woke: it is %s", m.ID, m.State)
		}
	}
	return fmt.Sprintf("%s in %s, %d machines asleep", s.css, took.Round(10*time.Microsecond), len(before)), nil
}

func wakes(ctx context.Context, s *Shop) (string, error) {
	if _, err := s.asleep(ctx); err != nil {
		return "", err
	}
	start := time.Now()
	resp, _, err := s.get(ctx, "/purchases")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("the first byte of %s after %s", servedBy(resp), time.Since(start).Round(100*time.Microsecond)), nil
}

// refused is a deploy that must fail, say all of want, and leave the release
// before it serving.
func (s *Shop) refused(ctx context.Context, want []string, flags ...string) error {
	before, err := s.serving(ctx)
	if err != nil {
		return err
	}
	load := s.load(ctx)
	defer func() { _, _ = load.Stop() }() // again is no mistake
	said, err := s.deploy(ctx, flags...)
	if err == nil {
		return errors.New("it was deployed")
	}
	for _, w := range want {
		if !strings.Contains(said, w) {
			return fmt.Errorf("what it said lacks %q:\n%s", w, said)
		}
	}
	if _, err := load.Stop(); err != nil {
		return fmt.Errorf("requests meanwhile: %w", err)
	}
	after, err := s.serving(ctx)
	if err == nil && after != before {
		err = fmt.Errorf("release v%d serves, want v%d", after, before)
	}
	return err
}

// load asks for the landing page all the time.
func (s *Shop) load(ctx context.Context) *instance.Load {
	l := &instance.Load{Addr: s.Edge, Host: s.Host(), Path: "/"}
	l.Start(ctx)
	return l
}

// awake does what needs the web machine awake, and says how many requests were
// answered meanwhile.
func (s *Shop) awake(ctx context.Context, do func() error) (answered int, err error) {
	if _, _, err := s.get(ctx, "/"); err != nil {
		return 0, err
	}
	load := s.load(ctx)
	err = eventually(ctx, func() (string, error) {
		if load.Answered() == 0 {
			return "none of the requests that keep it awake was answered", nil
		}
		return "", nil
	})
	if err == nil {
		err = do()
	}
	answered, failures := load.Stop()
	return answered, errors.Join(err, failures)
}

const badMigration = `from django.db import migrations


def fail(apps, schema_editor):
    raise ValueError("the purchases do not add up")


class Migration(migrations.Migration):
    dependencies = [("store", "0002_fill")]
    operations = [migrations.RunPython(fail)]
`

func brokenMigration(ctx context.Context, s *Shop) (string, error) {
	name := filepath.Join(s.dir, "store/migrations/0003_broken.py")
	if err := os.WriteFile(name, []byte(badMigration), 0o644); err != nil {
		return "", err
	}
	const text = "ValueError: the purchases do not add up"
	err := s.refused(ctx, []string{text, "Applying store.0003_broken..."})
	return text, errors.Join(err, os.Remove(name))
}

func brokenHosts(ctx context.Context, s *Shop) (string, error) {
	const good, bad = `ALLOWED_HOSTS = [".localhost", ".internal"]`, `ALLOWED_HOSTS = ["shop.example.com"]`
	if err := s.edit("shop/settings.py", good, bad); err != nil {
		return "", err
	}
	want := []string{"400 Bad Request", "add the app's hostname to ALLOWED_HOSTS"}
	err := s.refused(ctx, want, "--wait-timeout="+checkPatience.String())
	// On a busy host the app may not have got up within that time, and has
	// answered nothing.
	for wait := 2 * checkPatience; err != nil && strings.HasPrefix(err.Error(), `what it said lacks "400 `) && wait <= 8*checkPatience; wait *= 2 {
		err = s.refused(ctx, want, "--wait-timeout="+wait.String())
	}
	return "\"add the app's hostname to ALLOWED_HOSTS\"", errors.Join(err, s.edit("shop/settings.py", bad, good))
}

const (
	lead  = "Bowls, lamps and bird houses, turned and joined by hand."
	sales = "Winter sale: everything must go."
)

func changedLine(ctx context.Context, s *Shop) (string, error) {
	if err := s.edit("store/templates/store/home.html", lead, sales); err != nil {
		return "", err
	}
	if _, err := workerWorks(ctx, s); err != nil { // workerReplaced wants its last words
		return "", err
	}
	load := s.load(ctx)
	start := time.Now()
	_, err := s.deploy(ctx)
	took := time.Since(start)
	answered, failures := load.Stop()
	if err := errors.Join(err, failures); err != nil {
		return "", err
	}
	return fmt.Sprintf("live in %s; %d requests meanwhile, none failed", took.Round(10*time.Millisecond), answered), s.says(ctx, sales)
}

// says checks what the landing page says.
func (s *Shop) says(ctx context.Context, text string) error {
	_, body, err := s.get(ctx, "/")
	if err == nil && !bytes.Contains(body, []byte(text)) {
		err = fmt.Errorf("the page does not say %q: %.600s", text, body)
	}
	return err
}

func nothingChanged(ctx context.Context, s *Shop) (string, error) {
	before, err := s.one(ctx, "web")
	if err != nil {
		return "", err
	}
	start := time.Now()
	if _, err := s.deploy(ctx); err != nil {
		return "", err
	}
	took := time.Since(start)
	after, err := s.one(ctx, "web")
	if err != nil {
		return "", err
	}
	if before.ImageRef.Digest != after.ImageRef.Digest {
		return "", errors.New("the same folder gave another image")
	}
	return took.Round(10 * time.Millisecond).String(), nil
}

func rotation(ctx context.Context, s *Shop) (string, error) {
	load := s.load(ctx)
	start := time.Now()
	_, err := s.CLI(ctx, "secrets", "set", "--app", app, "SECRET_KEY=second")
	took := time.Since(start)
	for _, group := range []string{"web", "worker"} { // under load: asleep they cannot be asked
		if err == nil {
			err = s.hasSecret(ctx, group, "SECRET_KEY=second")
		}
	}
	answered, failures := load.Stop()
	if err := errors.Join(err, failures); err != nil {
		return "", err
	}
	return fmt.Sprintf("all machines have it after %s; %d requests meanwhile, none failed", took.Round(10*time.Millisecond), answered), nil
}

// hasSecret looks into the environment of a group's machine.
func (s *Shop) hasSecret(ctx context.Context, group, secret string) error {
	m, err := s.one(ctx, group)
	if err != nil {
		return err
	}
	r, err := s.CLI(ctx, "machine", "exec", m.ID, "--app", app, "--", "sh", "-c", `tr '\0' '\n' < /proc/1/environ`)
	if err == nil && !strings.Contains(r.Stdout, secret) {
		err = fmt.Errorf("the %s machine %s does not have the new secret", group, m.ID)
	}
	return err
}

func rollback(ctx context.Context, s *Shop) (string, error) {
	load := s.load(ctx)
	start := time.Now()
	_, err := s.CLI(ctx, "rollback", s.good, "--app", app, "--yes")
	took := time.Since(start)
	answered, failures := load.Stop()
	if err := errors.Join(err, failures); err != nil {
		return "", err
	}
	return fmt.Sprintf("the old page again after %s; %d requests meanwhile, none failed", took.Round(10*time.Millisecond), answered), s.says(ctx, lead)
}

func scale(ctx context.Context, s *Shop) (string, error) {
	refused, err := s.CLI(ctx, "scale", "count", "web=2", "--max-per-region", "1", "--app", app, "--yes")
	if err == nil {
		return "", errors.New("two machines with at most one in each region were made in one region")
	}
	if _, err := s.CLI(ctx, "scale", "count", "web=2", "--app", app, "--yes"); err != nil {
		return "", err
	}
	if list, err := s.group(ctx, "web"); err != nil || len(list) != 2 {
		return "", fmt.Errorf("%d web machines, want 2 (%w)", len(list), err)
	}
	load := s.load(ctx)
	_, err = s.CLI(ctx, "scale", "count", "web=1", "--app", app, "--yes")
	answered, failures := load.Stop()
	if err := errors.Join(err, failures); err != nil {
		return "", err
	}
	if _, err := s.one(ctx, "web"); err != nil {
		return "", err
	}
	said, _, _ := strings.Cut(strings.TrimPrefix(refused.Stderr, "Error: "), "\n")
	return fmt.Sprintf("%d requests on the way back, none failed; refused was: %s", answered, said), nil
}

// hog touches so many megabytes of memory, and says so.
func hog(mb int) []string {
	return []string{"python3", "-c", fmt.Sprintf("b = bytearray(%d << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('touched', len(b) >> 20)", mb)}
}

func outOfMemory(ctx context.Context, s *Shop) (string, error) {
	web, err := s.one(ctx, "web")
	if err != nil {
		return "", err
	}
	r, err := s.CLI(ctx, append([]string{"machine", "run", web.Config.Image, "--app", app, "--name", "hog", "--rm", "--restart", "no", "--"}, hog(400)...)...)
	if err == nil || r.Code != 137 {
		return "", fmt.Errorf("400 MB in a machine of 256 MB without swap: exit code %d, want 137 (%w)", r.Code, err)
	}
	const want = "Out of memory"
	if said := r.Stdout + r.Stderr; !strings.Contains(said, want) {
		err := eventually(ctx, func() (string, error) {
			log, err := s.logs(ctx)
			if !strings.Contains(log, want) {
				return fmt.Sprintf("nobody says %q: %s", want, said), err
			}
			return "", err
		})
		if err != nil {
			return "", err
		}
	}
	return "400 MB in 256: exit code 137, \"Out of memory\"", nil
}

func articleSwap(ctx context.Context, s *Shop) (string, error) {
	host, err := hostSettings()
	if err != nil {
		return "", err
	}
	if err := s.edit("fly.toml", "swap_size_mb = 512\n", ""); err != nil {
		return "", err
	}
	if _, err := s.deploy(ctx); err != nil {
		return "", err
	}
	m, err := s.one(ctx, "web")
	if err != nil {
		return "", err
	}
	err = eventually(ctx, func() (string, error) {
		log, err := s.logs(ctx, "--machine", m.ID)
		if want := "swapon /swapfile: 511 MB of swap"; !strings.Contains(log, want) {
			return fmt.Sprintf("its log lacks %q:\n%s", want, log), err
		}
		return "", err
	})
	if err != nil {
		return "", err
	}
	var r, settings instance.Result
	answered, err := s.awake(ctx, func() (err error) {
		if r, err = s.CLI(ctx, append([]string{"machine", "exec", m.ID, "--app", app, "--"}, hog(400)...)...); err != nil {
			return err
		}
		settings, err = s.CLI(ctx, "machine", "exec", m.ID, "--app", app, "--", "cat", "/proc/sys/vm/swappiness", "/proc/sys/vm/overcommit_memory")
		return err
	})
	if err != nil {
		return "", err
	}
	if got := settings.Stdout; got != "10\n1\n" {
		return "", fmt.Errorf("swappiness and overcommit_memory inside: %q, want 10 and 1", got)
	}
	now, err := hostSettings()
	if err != nil {
		return "", err
	}
	if !slices.Equal(now, host) {
		return "", fmt.Errorf("the host's settings changed: %q, before %q", now, host)
	}
	return fmt.Sprintf("%s in 256 MB while %d requests were answered; the host's settings are as before", strings.TrimSpace(r.Stdout), answered), nil
}

func hostSettings() ([]string, error) {
	var all []string
	for _, name := range []string{"/proc/sys/vm/swappiness", "/proc/sys/vm/overcommit_memory"} {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, string(data))
	}
	return all, nil
}
