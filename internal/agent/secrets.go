package agent

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	root "github.com/roost-run/roost"
)

// secrets opens what the machine's version runs with. A version of the secrets
// that is no more is the user's to mend, by an update of the machine.
func (a *Agent) secrets(ctx context.Context, m *root.Machine) (map[string]string, error) {
	version := m.Spec.Secrets
	if version == 0 || a.o.Secrets == nil {
		return nil, nil
	}
	values, err := a.o.Secrets.Open(ctx, m.App, version)
	if root.IsKind(err, root.NotFound) {
		return nil, root.Errorf(root.Invalid, "version %d of the app's secrets, which the machine runs with, is gone: update the machine to give it the current ones", version)
	}
	return values, err
}

// environment is what of the app's secrets becomes the environment of the
// machine's process: all of them, unless the config chooses.
func environment(p *root.Process, secrets map[string]string) (map[string]string, error) {
	switch {
	case p == nil:
		return secrets, nil
	case len(p.Secrets) > 0:
		env := make(map[string]string, len(p.Secrets))
		for _, variable := range slices.Sorted(maps.Keys(p.Secrets)) {
			value, ok := secrets[p.Secrets[variable]]
			if !ok {
				return nil, root.Errorf(root.Invalid, "config.processes[0].secrets: the app has no secret %s: set it with `roost secrets set`, then update the machine", p.Secrets[variable])
			}
			env[variable] = value
		}
		return env, nil
	case p.NoSecrets:
		return nil, nil
	}
	return secrets, nil
}

// withSecrets is the environment that beats the config's: the app's secrets,
// and above them what the platform itself sets.
func withSecrets(secrets, platform map[string]string) map[string]string {
	env := maps.Clone(secrets)
	if env == nil {
		return platform
	}
	maps.Copy(env, platform)
	return env
}

const (
	// secretsDir is where a boot's files that are secrets are mounted from.
	secretsDir = "secrets"
	// secretsSize and secretsFiles bound all of them: a config and the secrets
	// of an app are smaller.
	secretsSize  = 32 << 20
	secretsFiles = 4096
)

// secretFiles makes the files of a config whose contents are secrets. They
// never get into the root file system, which is on disk: they stand in memory,
// and are mounted where the config wants them. The machine may write to them,
// so this memory is bounded and their own. rest are the other files.
func secretFiles(dir string, files []root.File, secrets map[string]string) (mounts []specs.Mount, rest []root.File, err error) {
	for n, f := range files {
		if f.Secret == "" {
			rest = append(rest, f)
			continue
		}
		value, ok := secrets[f.Secret]
		if !ok {
			return nil, nil, root.Errorf(root.Invalid, "config.files[%d].secret_name: the app has no secret %s: set it with `roost secrets set`, then update the machine", n, f.Secret)
		}
		content, err := base64.StdEncoding.DecodeString(value)
		if err != nil { // without err: it tells of the value
			return nil, nil, root.Errorf(root.Invalid, "config.files[%d].secret_name: the value of secret %s is not base64: set it with `base64 -w0 FILE`", n, f.Secret)
		}
		mode := os.FileMode(f.Mode & 0o777)
		if mode == 0 {
			mode = 0o644
		}
		source := filepath.Join(dir, secretsDir, fmt.Sprintf("secret-%d", n))
		if len(mounts) == 0 {
			if err := mountTmpfs(filepath.Join(dir, secretsDir), secretsSize, secretsFiles); err != nil {
				return nil, nil, err
			}
		}
		if err := os.WriteFile(source, content, 0o600); err != nil {
			return nil, nil, err
		}
		if err := os.Chmod(source, mode); err != nil { // whatever the umask
			return nil, nil, err
		}
		mounts = append(mounts, specs.Mount{
			Destination: f.GuestPath, Type: "bind", Source: source, Options: []string{"bind", "rprivate", "nosuid", "nodev"},
		})
	}
	return mounts, rest, nil
}
