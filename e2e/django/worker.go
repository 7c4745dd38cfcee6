package django

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/roost-run/roost/machines"
)

// endWorker is a program that ends the worker next to it as an operator would.
const endWorker = `
import os, signal
for p in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{p}/cmdline").read().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        continue
    if words[1:3] == ["manage.py", "work"]:
        os.kill(int(p), signal.SIGTERM)
        print("ended")
`

func worker(ctx context.Context, s *Shop) (seen string, err error) {
	m, err := s.one(ctx, "worker")
	if err != nil {
		return "", err
	}
	err = eventually(ctx, func() (string, error) {
		log, err := s.logs(ctx, "--group", "worker")
		_, report, ok := strings.Cut(log, "report: 2400 purchases, ")
		if !ok {
			return "no report in the worker's log", err
		}
		seen, _, _ = strings.Cut(report, "\n")
		return "", err
	})
	if err != nil {
		return "", err
	}
	web, err := s.logs(ctx, "--group", "web")
	if err != nil {
		return "", err
	}
	if strings.Contains(web, m.ID) || strings.Contains(web, "report: ") || !strings.Contains(web, "Booting worker") {
		return "", fmt.Errorf("the log of group web is not its own:\n%s", web)
	}
	r, err := s.CLI(ctx, "machine", "exec", m.ID, "--app", app, "--", "python3", "-c", endWorker)
	if err == nil && r.Stdout != "ended\n" {
		err = fmt.Errorf("there was no worker to end: %q", r.Stdout)
	}
	if err != nil {
		return "", err
	}
	err = eventually(ctx, func() (string, error) {
		log, err := s.logs(ctx, "--group", "worker")
		_, after, ended := strings.Cut(log, "worker: done")
		if !ended || !strings.Contains(after, "report: 2400 purchases, ") {
			return "the worker does not report again after its end:\n" + log, err
		}
		return "", err
	})
	if err != nil {
		return "", err
	}
	err = eventually(ctx, func() (string, error) {
		now, err := s.one(ctx, "worker")
		if err == nil && now.ID != m.ID {
			err = fmt.Errorf("the worker's machine is %s, want %s, started again", now.ID, m.ID)
		}
		if err != nil || now.State == machines.StateStarted {
			return "", err
		}
		return fmt.Sprintf("machine %s is %s", now.ID, now.State), nil // the record follows the log
	})
	return "2400 purchases, " + seen, err
}

// workerReplaced looks at the worker's log after a deploy: two of them at once
// would do the work twice.
func workerReplaced(ctx context.Context, s *Shop) (string, error) {
	log, err := workerWorks(ctx, s)
	if err != nil {
		return "", err
	}
	before, _, _ := cutLast(log, "Preparing to run")
	_, end, ok := cutLast(before, "worker: done")
	if !ok || strings.Contains(end, "report: ") || strings.Contains(end, "Preparing to run") {
		return "", errors.New("the former worker had not ended when the new one began:\n" + log)
	}
	return "its last words, then the new one's first report", nil
}

// workerWorks returns the workers' log when the one that began last has
// reported: before, a signal ends it without a word.
func workerWorks(ctx context.Context, s *Shop) (log string, err error) {
	err = eventually(ctx, func() (missing string, err error) {
		log, err = s.logs(ctx, "--group", "worker")
		_, now, ok := cutLast(log, "Preparing to run")
		if !ok || !strings.Contains(now, "report: ") {
			return "the worker does not report:\n" + log, err
		}
		return "", err
	})
	return log, err
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
