package real

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

const gunicornImage = "registry.localhost/gunicorn:latest"

// loadGunicorn makes an image with gunicorn from Debian's packages, once for
// all runs on this host, and loads it.
var loadGunicorn = sync.OnceValue(func() error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	archive := filepath.Join(cache, "roost", "debian-gunicorn.tar")
	if _, err := os.Stat(archive); err != nil {
		if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
			return err
		}
		part := fmt.Sprintf("%s.%d.part", archive, os.Getpid())
		defer os.Remove(part) //nolint:errcheck // renamed, if all went well
		cmd := exec.CommandContext(context.Background(), "../../scripts/base-image", part, "python3", "gunicorn")
		cmd.Env = append(os.Environ(), "BASE_IMAGE_NAME="+gunicornImage)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make the gunicorn image: %w\n%s", err, out)
		}
		if err := os.Rename(part, archive); err != nil {
			return err
		}
	}
	_, err = in.CLI(context.Background(), "image", "load", archive)
	return err
})

// The watchdog's time-out, no shorter than a busy host may keep a worker from
// running, and how long a machine stays frozen: well past it.
const (
	watchdog = 4 * time.Second
	frozen   = 6 * time.Second
)

// victims is what the log says around each death, machine by machine.
func victims(text string) string {
	byMachine := map[string][]string{}
	for line := range strings.Lines(text) {
		if f := strings.SplitN(line, "\t", 4); len(f) == 4 {
			byMachine[f[2]] = append(byMachine[f[2]], line)
		}
	}
	var b strings.Builder
	for _, lines := range byMachine {
		for i, line := range lines {
			if strings.Contains(line, "WORKER TIMEOUT") {
				b.WriteString(strings.Join(lines[max(0, i-4):min(len(lines), i+4)], "") + "\n")
			}
		}
	}
	return b.String()
}

// TestWatchdogs freezes gunicorn past its time-out, 50 times for each kind of
// worker: its master must not kill a worker when it thaws, and the request
// that thaws it must be answered.
func TestWatchdogs(t *testing.T) {
	t.Parallel()
	if err := loadGunicorn(); err != nil {
		t.Fatal(err)
	}
	const machineCount, cycles = 10, 5
	for _, class := range []string{"sync", "gthread"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			app := newApp(t)
			ids := make([]string, machineCount)
			for i := range ids {
				c := web()
				c.Image = gunicornImage
				source := base64.StdEncoding.EncodeToString([]byte("import os\ndef app(environ, start):\n    start('200 OK', [('Content-Type', 'text/plain')])\n    return [str(os.getpid()).encode()]\n"))
				c.Files = []machines.File{{GuestPath: "/srv/shop.py", RawValue: &source}}
				c.Init.Exec = []string{
					"gunicorn", "--chdir", "/srv", "--bind", "0.0.0.0:8080", "--workers", "2", "--threads", "2", "--worker-class", class,
					"--timeout", fmt.Sprint(int(watchdog.Seconds())), "shop:app",
				}
				if class == "sync" {
					c.Init.Exec = append(c.Init.Exec[:7:7], c.Init.Exec[9:]...) // threads are gthread's
				}
				ids[i] = start(t, app, c).ID
			}
			for _, id := range ids {
				if a := at(t, app, id, "/"); a.StatusCode != http.StatusOK {
					t.Fatalf("before any freeze: %d: %s", a.StatusCode, a.Text)
				}
			}
			killed := func() (n int, text string) {
				r, err := in.CLI(t.Context(), "logs", "--app", app, "--no-tail", "--lines", "0")
				want(t, err)
				return strings.Count(r.Stdout, "WORKER TIMEOUT"), r.Stdout
			}
			before, text := killed() // a slow boot is no thaw
			if !strings.Contains(text, "Booting worker") {
				t.Fatalf("the log does not have gunicorn's words:\n%.2000s", text)
			}
			for range cycles {
				for _, id := range ids {
					if err := admin().Suspend(t.Context(), app, id); err != nil {
						t.Fatal(err)
					}
				}
				if err := instance.Pause(t.Context(), frozen); err != nil {
					t.Fatal(err)
				}
				for _, id := range ids {
					if a := at(t, app, id, "/"); a.StatusCode != http.StatusOK {
						t.Errorf("the request that thaws %s: %d: %s", id, a.StatusCode, a.Text)
					}
				}
			}
			if after, text := killed(); after > before {
				t.Errorf("%d workers were killed in %d thaws:\n%s", after-before, machineCount*cycles, victims(text))
			}
		})
	}
}
