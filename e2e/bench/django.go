package main

import (
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/roost-run/roost/machines"
)

// shop is a Django project in one file, with what `startproject` turns on.
//
//go:embed shop.py
var shop []byte

const djangoCycles = 40

// loadDjango makes an image with Django from Debian's packages, once for all
// runs on this host, and loads it.
func (w *world) loadDjango(ctx context.Context) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	archive := filepath.Join(cache, "roost", "debian-django.tar")
	if _, err := os.Stat(archive); err != nil {
		fmt.Println("Making an image with Django from Debian's packages; the next run finds it in", archive)
		if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
			return err
		}
		part := archive + ".part"
		cmd := exec.CommandContext(ctx, "scripts/base-image", part, "python3", "python3-django", "gunicorn")
		cmd.Env = append(os.Environ(), "BASE_IMAGE_NAME="+djangoImage)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make the Django image: %w\n%s", err, out)
		}
		if err := os.Rename(part, archive); err != nil {
			return err
		}
	}
	_, err = w.CLI(ctx, "image", "load", archive)
	return err
}

// django measures the wakes of a suspended Django, and what it keeps of the
// host's memory while it sleeps.
func (w *world) django(ctx context.Context) error {
	if err := w.loadDjango(ctx); err != nil {
		return err
	}
	const app = "django"
	c := web(djangoImage)
	source := base64.StdEncoding.EncodeToString(shop)
	c.Files = []machines.File{{GuestPath: "/srv/shop.py", RawValue: &source}}
	c.Init.Exec = []string{"gunicorn", "--chdir", "/srv", "--bind", "0.0.0.0:8080", "--workers", "2", "shop:application"}
	c.Init.SwapSizeMB = 512
	c.Guest = &machines.Guest{CPUKind: "shared", CPUs: 1, MemoryMB: 256}
	m, err := w.run(ctx, app, c)
	if err != nil {
		return err
	}
	for range 50 { // both workers have imported everything
		if _, err := w.ask(app, "/"); err != nil {
			return err
		}
	}
	awake, err := w.stats(ctx, m)
	if err != nil {
		return err
	}

	var warm, frozen, reclaimed, thaw, orders samples
	var resident, swapped, back []int64
	wake := func(reclaim bool) (time.Duration, error) {
		if err := w.suspend(ctx, app, m, reclaim); err != nil {
			return 0, err
		}
		if reclaim {
			s, err := w.stats(ctx, m)
			if err != nil {
				return 0, err
			}
			resident, swapped = append(resident, s.Memory), append(swapped, s.Swap)
		}
		if err := settle(ctx); err != nil {
			return 0, err
		}
		return w.ask(app, "/")
	}
	for range djangoCycles {
		for range 10 { // the other worker comes back too; not measured
			if _, err := w.ask(app, "/"); err != nil {
				return err
			}
		}
		for range 5 {
			t, err := w.ask(app, "/")
			if err != nil {
				return err
			}
			warm = append(warm, t)
		}
		t, err := wake(false)
		if err != nil {
			return err
		}
		frozen = append(frozen, t)

		// The thaw by itself, without a request.
		if err := w.suspend(ctx, app, m, false); err != nil {
			return err
		}
		if err := settle(ctx); err != nil {
			return err
		}
		var started struct {
			Thawed bool
			Took   time.Duration
		}
		begin := time.Now()
		if err := w.order(ctx, http.MethodPost, "/instances/"+m.InstanceID+"/start", map[string]string{"Source": "user"}, &started); err != nil {
			return err
		}
		orders = append(orders, time.Since(begin))
		if !started.Thawed {
			return fmt.Errorf("machine %s was not thawed by the order to start", m.ID)
		}
		thaw = append(thaw, started.Took)
		if _, err := w.ask(app, "/"); err != nil {
			return err
		}

		if t, err = wake(true); err != nil {
			return err
		}
		reclaimed = append(reclaimed, t)
		s, err := w.stats(ctx, m)
		if err != nil {
			return err
		}
		back = append(back, s.Memory-resident[len(resident)-1])
	}

	r := w.report
	r.detail("Django, warm request", warm)
	r.detail("Django, request that wakes it, frozen", frozen)
	r.detail("Django, request that wakes it, reclaimed", reclaimed)
	r.detail("Thaw, inside the server process", thaw)
	r.detail("Thaw, order and answer over the socket", orders)
	r.below("Wake of a suspended Django, frozen: first byte minus warm (p50)", frozen.p50()-warm.p50(), 8*time.Millisecond,
		fmt.Sprintf("warm %s, waking %s", ms(warm.p50()), ms(frozen.p50())))
	r.below("The same, reclaimed into a swap file (p50)", reclaimed.p50()-warm.p50(), 35*time.Millisecond,
		fmt.Sprintf("warm %s, waking %s, which brings %s back from disk", ms(warm.p50()), ms(reclaimed.p50()), mb(median(back))))
	r.below("The thaw itself (p50)", thaw.p50(), 2*time.Millisecond, "with its order over the socket "+ms(orders.p50()))
	r.memory("Suspended Django, 2 workers, reclaimed: host memory", median(resident), 40<<20,
		fmt.Sprintf("awake %s; %s lie uncompressed in the swap file", mb(awake.Memory), mb(median(swapped))))
	return w.api.DeleteApp(ctx, app, true)
}

func median(v []int64) int64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
