package bundle

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
)

// Process is the main process of a machine, as it will run.
type Process struct {
	Args   []string
	Env    []string // without the platform's
	Dir    string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Home   string
	User   string // as it was asked for, "root" if it was not: for the log
}

// DefaultPath is the PATH of an image that sets none, as Docker has it.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Resolve says what a config and an image run, and checks inside the root
// file system that it can: the command exists and is executable, the user
// exists. Mistakes are kind Invalid, with a message for the user.
func Resolve(rootfs string, cfg root.Config, img ocispec.ImageConfig) (Process, error) {
	return resolve(rootfs, cfg, img, nil)
}

func resolve(rootfs string, cfg root.Config, img ocispec.ImageConfig, platform map[string]string) (Process, error) {
	args := Command(cfg, img)
	if len(args) == 0 {
		return Process{}, root.Errorf(root.Invalid, "nothing to run: the image has no CMD or ENTRYPOINT and the config has no init.cmd, init.entrypoint or init.exec")
	}
	name := img.User
	if cfg.Process != nil && cfg.Process.User != "" {
		name = cfg.Process.User
	}
	fsys, err := openTree(rootfs)
	if err != nil {
		return Process{}, err
	}
	defer fsys.close()
	u, err := fsys.user(name)
	if err != nil {
		return Process{}, err
	}
	p := Process{Args: args, Dir: path.Join("/", img.WorkingDir), UID: u.UID, GID: u.GID, Groups: u.Groups, Home: u.Home, User: name}
	if name == "" {
		p.User = "root"
	}
	p.Env = environment(cfg, img, platform, u.Home)
	return p, fsys.checkCommand(args[0], p.Dir, lookup(p.Env, "PATH"))
}

// Command is the argument list that a config makes of an image's: exec is all
// of it, else entrypoint and cmd, each of which overrides the image's alone.
func Command(cfg root.Config, img ocispec.ImageConfig) []string {
	run := cfg.Init
	if p := cfg.Process; p != nil {
		run.Exec = first(p.Exec, run.Exec)
		run.Entrypoint = first(p.Entrypoint, run.Entrypoint)
		run.Cmd = first(p.Cmd, run.Cmd)
	}
	if len(run.Exec) > 0 {
		return slices.Clone(run.Exec)
	}
	return slices.Concat(first(run.Entrypoint, img.Entrypoint), first(run.Cmd, img.Cmd))
}

func first(lists ...[]string) []string {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// environment merges in order, later ones winning in place: the image's, the
// config's, the process's, the platform's. PATH and HOME get defaults.
func environment(cfg root.Config, img ocispec.ImageConfig, platform map[string]string, home string) []string {
	env := slices.Clone(img.Env)
	set := func(values map[string]string) {
		for _, k := range slices.Sorted(maps.Keys(values)) {
			env = Setenv(env, k, values[k])
		}
	}
	set(cfg.Env)
	if cfg.Process != nil {
		set(cfg.Process.Env)
	}
	set(platform)
	for _, d := range [][2]string{{"PATH", DefaultPath}, {"HOME", home}} {
		if lookup(env, d[0]) == "" {
			env = Setenv(env, d[0], d[1])
		}
	}
	if cfg.Init.TTY && lookup(env, "TERM") == "" {
		env = Setenv(env, "TERM", "xterm")
	}
	return env
}

// Setenv sets a variable in a list of KEY=value, in place if it is there.
func Setenv(env []string, key, value string) []string {
	for i := range env {
		if k, _, _ := strings.Cut(env[i], "="); k == key {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

func lookup(env []string, key string) string {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			return v
		}
	}
	return ""
}

// checkCommand finds a command as execvp(3) would.
func (t *tree) checkCommand(command, dir, search string) error {
	if command == "" {
		return root.Errorf(root.Invalid, "the command to run is empty: check init.exec, init.entrypoint and init.cmd")
	}
	if strings.Contains(command, "/") {
		err := t.checkProgram(command, absolute(command, dir))
		if root.IsKind(err, root.NotFound) {
			return root.Errorf(root.Invalid, "%s", err.Error()) // it is the user's mistake
		}
		return err
	}
	var denied error
	for p := range strings.SplitSeq(search, ":") {
		err := t.checkProgram(command, path.Join(absolute(p, dir), command))
		if err == nil {
			return nil
		}
		if !root.IsKind(err, root.NotFound) {
			denied = err
		}
	}
	if denied != nil {
		return denied
	}
	return root.Errorf(root.Invalid, "command not found: %s is not in the image's PATH (%s)", clip(command), clip(search))
}

func absolute(name, dir string) string {
	if path.IsAbs(name) {
		return name
	}
	return path.Join(dir, name)
}

// LookupUser finds "name[:group]", by name or number, in a root file system;
// "" is root. A number that the image does not know is fine, a name is not:
// kind Invalid.
func LookupUser(rootfs, name string) (User, error) {
	fsys, err := openTree(rootfs)
	if err != nil {
		return User{}, err
	}
	defer fsys.close()
	return fsys.user(name)
}

// User is a user of an image.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
	Home     string
}

// user reads passwd(5) and group(5). An unknown number gets the group of the
// same number and the home /, as on Fly.io.
func (t *tree) user(spec string) (User, error) {
	if spec == "" {
		spec = "0"
	}
	name, group, hasGroup := strings.Cut(spec, ":")
	u := User{Home: "/"}
	number, numeric := parseID(name)
	found := false
	err := t.lines("/etc/passwd", func(f []string) bool {
		if len(f) < 4 {
			return false
		}
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if !ok1 || !ok2 || f[0] != name && (!numeric || uid != number) {
			return false
		}
		found, u.UID, u.GID, name = true, uid, gid, f[0]
		if len(f) > 5 && f[5] != "" {
			u.Home = f[5]
		}
		return true
	})
	switch {
	case err != nil:
		return User{}, err
	case found:
	case numeric:
		u.UID, u.GID = number, number
		if number == 0 {
			u.Home = "/root"
		}
	case name == "root":
		u.Home = "/root" // an image without /etc/passwd still has a root
	default:
		return User{}, root.Errorf(root.Invalid, "no such user: %s is not in the image's /etc/passwd", clip(name))
	}
	if hasGroup {
		u.GID, err = t.group(group)
		return u, err
	}
	err = t.lines("/etc/group", func(f []string) bool {
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), name) {
			return false
		}
		if gid, ok := parseID(f[2]); ok && gid != u.GID {
			u.Groups = append(u.Groups, gid)
		}
		return false
	})
	return u, err
}

func (t *tree) group(name string) (gid uint32, err error) {
	number, numeric := parseID(name)
	found := false
	err = t.lines("/etc/group", func(f []string) bool {
		if len(f) < 3 || f[0] != name {
			return false
		}
		gid, found = parseID(f[2])
		return found
	})
	switch {
	case err != nil || found:
		return gid, err
	case numeric:
		return number, nil
	}
	return 0, root.Errorf(root.Invalid, "no such group: %s is not in the image's /etc/group", clip(name))
}

// lines calls f with the fields of each line until it returns true; a file
// that does not exist has none.
func (t *tree) lines(name string, f func(fields []string) bool) error {
	file, err := t.open(name)
	if isNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look users up: %w", err)
	}
	s := bufio.NewScanner(file)
	for s.Scan() {
		if f(strings.Split(s.Text(), ":")) {
			break
		}
	}
	return errors.Join(s.Err(), file.Close())
}

// parseID: user and group numbers are 32 bits, and -1 is none.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < 1<<32-1
}

// clip keeps hostile input out of messages.
func clip(s string) string {
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return strconv.Quote(s)
}

// CheckCommand says whether a command can be executed inside a root file
// system, as Resolve does for the main process.
func CheckCommand(rootfs string, args []string, dir string, env []string) error {
	if len(args) == 0 {
		return root.Errorf(root.Invalid, "no command given")
	}
	t, err := openTree(rootfs)
	if err != nil {
		return err
	}
	defer t.close()
	return t.checkCommand(args[0], dir, lookup(env, "PATH"))
}
