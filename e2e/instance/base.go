package instance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// LoadBase loads debian:bookworm-slim under its usual name, made of Debian's
// own packages and kept for later runs on this host. source is the module's
// directory.
func (in *Instance) LoadBase(ctx context.Context, source string) (cached bool, err error) {
	archive, cached, err := baseArchive(ctx, source)
	if err != nil {
		return false, err
	}
	_, err = in.CLI(ctx, "image", "load", archive)
	return cached, err
}

// baseArchive is the base image's archive, made now unless it is there.
func baseArchive(ctx context.Context, source string) (archive string, cached bool, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", false, err
	}
	archive = filepath.Join(cache, "roost", "debian-bookworm-slim.tar")
	if _, err := os.Stat(archive); err == nil {
		return archive, true, nil
	}
	return archive, false, makeBase(ctx, source, archive)
}

func makeBase(ctx context.Context, source, archive string) error {
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(archive), "base-*.part")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name()) //nolint:errcheck // renamed, if all went well
	if err := part.Close(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(source, "scripts", "base-image"), part.Name(), "ca-certificates")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the base image: %w\n%s", err, out)
	}
	return os.Rename(part.Name(), archive)
}
