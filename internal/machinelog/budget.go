package machinelog

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	root "github.com/roost-run/roost"
)

// Budget is how much the logs below a directory may take.
type Budget struct {
	App root.Bytes // each app's directory
	All root.Bytes // all of them
	Age time.Duration
	// Live reports whether a machine exists: the newest segment of one that
	// does is never removed, whatever its age.
	Live func(root.MachineID) bool
}

// segment is a file that may be removed.
type segment struct {
	path string
	size root.Bytes
	at   time.Time // of its last line
	kept bool      // it may not
}

// Enforce removes what is older than the budget's age and belongs to nobody
// any more, and then the oldest segments until each app, and all of them
// together, are within the budget. A directory that becomes empty goes, too.
// It returns how much was freed.
func Enforce(base string, b Budget, now time.Time) (freed root.Bytes, err error) {
	apps, err := os.ReadDir(base)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		return 0, err
	}
	var errs []error
	var all []segment
	for _, app := range apps {
		dir := filepath.Join(base, app.Name())
		own, err := segmentsOf(dir, b.Live)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		own, n, err := trim(own, b.App, now.Add(-b.Age))
		freed += n
		errs = append(errs, err)
		all = append(all, own...)
		if len(own) == 0 {
			_ = os.Remove(dir) // fails, rightly, if something else is in it
		}
	}
	_, n, err := trim(all, b.All, time.Time{})
	return freed + n, errors.Join(append(errs, err)...)
}

// segmentsOf lists an app's segments.
func segmentsOf(dir string, live func(root.MachineID) bool) ([]segment, error) {
	writers, err := listAll(dir)
	if err != nil {
		return nil, err
	}
	var out []segment
	for id, numbers := range writers {
		for i, n := range numbers {
			s := segment{path: segmentName(dir, id, n)}
			info, err := os.Stat(s.path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // rotated away meanwhile
			}
			if err != nil {
				return nil, err
			}
			s.size, s.at = root.Bytes(info.Size()), info.ModTime()
			s.kept = i == len(numbers)-1 && !process(id) && live(id)
			out = append(out, s)
		}
	}
	return out, nil
}

// trim removes segments older than before and the oldest of the others until
// they are within budget, and returns what is left.
func trim(list []segment, budget root.Bytes, before time.Time) (left []segment, freed root.Bytes, err error) {
	slices.SortFunc(list, func(a, b segment) int { return a.at.Compare(b.at) })
	total := root.Bytes(0)
	for _, s := range list {
		total += s.size
	}
	var errs []error
	for _, s := range list {
		if s.kept || !s.at.Before(before) && total <= budget {
			left = append(left, s)
			continue
		}
		if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			left = append(left, s)
			continue
		}
		total -= s.size
		freed += s.size
	}
	return left, freed, errors.Join(errs...)
}
