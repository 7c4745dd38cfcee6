package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/roost-run/roost/machines"
)

// site is an app that is built from a Dockerfile and deployed. Its start script
// is one of a virtual machine: it makes a swap file and turns it on.
const (
	site     = "site"
	siteHost = site + ".localhost"
	siteDir  = "/root/site"
	swapMB   = 128
	// base is the image that its Dockerfile begins with.
	base = "docker.io/library/busybox:latest"
	// buildMemory is little, so that a step which takes all is killed soon.
	buildMemory = "768MB"
)

const siteConfig = `app = "` + site + `"
[http_service]
  internal_port = 8080
  auto_stop_machines = "off"
  [[http_service.checks]]
    path = "/ht/"
    interval = "5s"
    timeout = "10s"
    grace_period = "60s"
[[vm]]
  memory = "256mb"
`

const siteStart = `set -e
fallocate -l 128M /swapfile
chmod 0600 /swapfile
mkswap /swapfile
echo 10 > /proc/sys/vm/swappiness
swapon /swapfile
echo 1 > /proc/sys/vm/overcommit_memory
exec /app
`

const siteDockerfile = `FROM busybox
USER root
ENV PATH=/bin
RUN mkdir /made && cat /proc/self/cgroup > /made/group
COPY start.sh /
ENTRYPOINT []
`

// deployChecks are those of what is built and released.
func deployChecks() []check {
	return []check{
		{"a Dockerfile is built and deployed, and passes its health check", deploy},
		{"a start script's own swapon takes effect", ownSwap},
		{"the machine sees its own memory and swap", ownFigures},
		{"a machine uses more than its memory by its swap", swapped},
		{"a secret reaches the machine, and no list", secret},
		{"a release that crashes goes back by itself, and says why", crashing},
		{"a build that runs out of memory says so", greedyBuild},
		{"a rollback brings back the former one", rollback},
	}
}

// writeSite writes the app's folder with the rest of its Dockerfile.
func writeSite(rest string) error {
	for name, text := range map[string]string{"fly.toml": siteConfig, "start.sh": siteStart, "Dockerfile": siteDockerfile + rest + "\n"} {
		if err := os.WriteFile(filepath.Join(siteDir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func deploy(ctx context.Context, _ *world) (string, error) {
	if _, err := cli(ctx, "image", "load", share+"/base.tar"); err != nil {
		return "", err
	}
	if err := errors.Join(os.MkdirAll(siteDir, 0o755), writeSite(`CMD ["sh", "/start.sh"]`)); err != nil {
		return "", err
	}
	if _, err := cli(ctx, "app", "create", site); err != nil {
		return "", err
	}
	if _, err := cli(ctx, "deploy", siteDir, "--yes"); err != nil {
		return "", err
	}
	made, err := siteFile(ctx, "/made/group")
	if err != nil {
		return "", err
	}
	var list []struct{ Status string }
	if err := cliJSON(ctx, &list, "checks", "list", "--app", site); err != nil {
		return "", err
	}
	if len(list) != 1 || list[0].Status != "passing" {
		return "", fmt.Errorf("checks: got %+v, want one that passes", list)
	}
	return "control group of the build step, as it saw it: " + strings.TrimSpace(made), nil
}

// siteFile reads a file as the site's machine sees it.
func siteFile(ctx context.Context, path string) (string, error) {
	body, err := requestOf(ctx, siteHost, http.MethodGet, "/file?path="+path)
	return string(body), err
}

func ownSwap(ctx context.Context, _ *world) (string, error) {
	max, err := siteFile(ctx, "/sys/fs/cgroup/memory.swap.max")
	if err != nil {
		return "", err
	}
	// The header of the file is not swap.
	if n, err := strconv.Atoi(strings.TrimSpace(max)); err != nil || n < (swapMB-1)<<20 || n > swapMB<<20 {
		return "", fmt.Errorf("memory.swap.max is %q, want nearly %d MB", max, swapMB)
	}
	swappiness, err := siteFile(ctx, "/proc/sys/vm/swappiness")
	if err != nil {
		return "", err
	}
	host, err := os.ReadFile("/proc/sys/vm/swappiness")
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(swappiness) != "10" || strings.TrimSpace(string(host)) == "10" {
		return "", fmt.Errorf("swappiness: inside %q, want 10; of the host %q, want another", swappiness, host)
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil || strings.Contains(string(swaps), "swapfile") {
		return "", fmt.Errorf("the host's swap: %s, %w", swaps, err)
	}
	logs, err := cli(ctx, "logs", "--app", site, "--no-tail")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(logs) {
		if at := strings.Index(line, "swapon /swapfile:"); at >= 0 {
			return "memory.swap.max " + strings.TrimSpace(max) + "; log: " + strings.TrimSpace(line[at:]), nil
		}
	}
	return "", fmt.Errorf("the log does not tell of it: %s", logs)
}

func ownFigures(ctx context.Context, _ *world) (string, error) {
	text, err := siteFile(ctx, "/proc/meminfo")
	if err != nil {
		return "", err
	}
	kb := map[string]int{}
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(line, ":")
		if fields := strings.Fields(rest); len(fields) > 0 {
			kb[name], _ = strconv.Atoi(fields[0]) // 0 is looked for below
		}
	}
	if kb["MemTotal"] != memory<<10 || kb["MemAvailable"] <= 0 || kb["MemAvailable"] > kb["MemTotal"] {
		return "", fmt.Errorf("MemTotal %d, MemAvailable %d kB", kb["MemTotal"], kb["MemAvailable"])
	}
	// lxcfs before 6 looks for swap at the root of the control groups, where
	// version 2 has no such file, and then shows none: decision 37.
	out, err := exec.CommandContext(ctx, "lxcfs", "--version").CombinedOutput() // it goes to standard error
	if err != nil {
		return "", err
	}
	version := strings.Trim(strings.TrimSpace(string(out)), `"`)
	old := strings.HasPrefix(version, "5.") && kb["SwapTotal"] == 0
	if total := kb["SwapTotal"]; !old && (total < (swapMB-1)<<10 || total > swapMB<<10) {
		return "", fmt.Errorf("SwapTotal %d kB, want nearly %d MB; lxcfs %s", total, swapMB, version)
	}
	return fmt.Sprintf("MemTotal %d, MemAvailable %d, SwapTotal %d kB (lxcfs %s)", kb["MemTotal"], kb["MemAvailable"], kb["SwapTotal"], version), nil
}

func swapped(ctx context.Context, _ *world) (string, error) {
	if _, err := requestOf(ctx, siteHost, http.MethodPost, fmt.Sprintf("/eat?mb=%d", memory+swapMB/4)); err != nil {
		return "", err
	}
	now, err := siteFile(ctx, "/sys/fs/cgroup/memory.swap.current")
	if err != nil {
		return "", err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(now)); err != nil || n < swapMB/4<<20 {
		return "", fmt.Errorf("memory.swap.current is %q", now)
	}
	return fmt.Sprintf("%d MB in use of %d MB, %s bytes of swap", memory+swapMB/4, memory, strings.TrimSpace(now)), nil
}

func secret(ctx context.Context, w *world) (string, error) {
	const value = "as-secret-as-can-be"
	if _, err := cli(ctx, "secrets", "set", "--app", site, "GREETING="+value); err != nil {
		return "", err
	}
	list, err := cli(ctx, "secrets", "list", "--app", site)
	if err != nil {
		return "", err
	}
	if !strings.Contains(list, "GREETING") || strings.Contains(list, value) {
		return "", fmt.Errorf("secrets list: %s", list)
	}
	if has, err := greets(ctx, value); err != nil || !has {
		return "", fmt.Errorf("the machine has the secret: %t, %w", has, err)
	}
	all, err := w.api.List(ctx, site, machines.ListOptions{})
	if err != nil || len(all) != 1 {
		return "", fmt.Errorf("machines: %d, %w", len(all), err)
	}
	return "release v2, still machine " + all[0].ID, nil
}

// greets reports whether the site's program has the secret.
func greets(ctx context.Context, value string) (bool, error) {
	env, err := siteFile(ctx, "/proc/self/environ")
	return strings.Contains(env, "GREETING="+value), err
}

func crashing(ctx context.Context, _ *world) (string, error) {
	if err := writeSite(`CMD ["sh", "-c", "echo cannot go on; exit 3"]`); err != nil {
		return "", err
	}
	_, err := cli(ctx, "deploy", siteDir, "--yes")
	if err == nil {
		return "", errors.New("the deploy of a program that exits succeeded")
	}
	if !strings.Contains(err.Error(), "exit code 3") || !strings.Contains(err.Error(), "cannot go on") {
		return "", fmt.Errorf("the reason does not name code and output: %w", err)
	}
	has, err := greets(ctx, "")
	if err != nil || !has {
		return "", fmt.Errorf("the release before serves: %t, %w", has, err)
	}
	return "the release before serves", nil
}

func greedyBuild(ctx context.Context, _ *world) (string, error) {
	if err := writeSite("RUN tail /dev/zero"); err != nil {
		return "", err
	}
	_, err := cli(ctx, "image", "build", siteDir, "--app", site)
	if err == nil {
		return "", errors.New("a step without end succeeded")
	}
	if !strings.Contains(err.Error(), "out of memory") || !strings.Contains(err.Error(), "build_memory") {
		return "", fmt.Errorf("the reason is not named: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	if _, err := siteFile(ctx, "/made/group"); err != nil {
		return "", fmt.Errorf("the site: %w", err)
	}
	return lines[len(lines)-1], nil
}

func rollback(ctx context.Context, _ *world) (string, error) {
	if _, err := cli(ctx, "rollback", "v1", "--app", site, "--yes"); err != nil {
		return "", err
	}
	has, err := greets(ctx, "")
	if err != nil || has {
		return "", fmt.Errorf("the first release serves, without the secret: %t, %w", !has, err)
	}
	list, err := cli(ctx, "releases", "list", "--app", site)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(list) {
		fmt.Print(noteMark, line)
	}
	fmt.Println()
	// The checks that follow start and stop the host: one app is enough.
	_, err = cli(ctx, "app", "destroy", site, "--yes")
	return "v1 serves again", err
}
