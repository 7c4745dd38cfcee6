package state

import (
	"time"

	root "github.com/roost-run/roost"
)

// releaseRecord is what a release is, which never changes.
type releaseRecord struct {
	V           int           `json:"v"`
	ID          string        `json:"id"`
	App         string        `json:"app"`
	Version     int           `json:"version"`
	Image       imageRecord   `json:"image"`
	Definition  []byte        `json:"definition,omitempty"`
	Groups      []groupRecord `json:"groups,omitempty"`
	Routes      []routeRecord `json:"routes,omitempty"`
	Deploy      deployRecord  `json:"deploy,omitzero"`
	Secrets     int           `json:"secrets,omitzero"`
	Repeats     int           `json:"repeats,omitzero"`
	Reason      string        `json:"reason,omitzero"`
	Description string        `json:"description,omitzero"`
	Author      string        `json:"author,omitzero"`
	CreatedAt   time.Time     `json:"created_at,omitzero"`
}

type groupRecord struct {
	Name   string       `json:"name"`
	Config configRecord `json:"config"`
	Source []byte       `json:"source,omitempty"`
	Sized  bool         `json:"sized,omitzero"`
	Region string       `json:"region,omitzero"`

	Checks []machineCheckRecord `json:"machine_checks,omitempty"`
}

type machineCheckRecord struct {
	Ref        string      `json:"ref,omitzero"`
	Image      imageRecord `json:"image,omitzero"`
	Entrypoint []string    `json:"entrypoint,omitempty"`
	Command    []string    `json:"command,omitempty"`
	Stop       stopRecord  `json:"stop,omitzero"`
}

func fromGroup(g root.Group) groupRecord {
	return groupRecord{
		Name: g.Name, Config: fromConfig(g.Config), Source: g.Source, Sized: g.Sized, Region: string(g.Region),
		Checks: convert(g.Checks, func(k root.MachineCheck) machineCheckRecord {
			return machineCheckRecord{k.Ref, fromImage(k.Image), k.Entrypoint, k.Command, stopRecord(k.Stop)}
		}),
	}
}

func (g groupRecord) root() root.Group {
	return root.Group{
		Name: g.Name, Config: g.Config.root(), Source: g.Source, Sized: g.Sized, Region: root.Region(g.Region),
		Checks: convert(g.Checks, func(k machineCheckRecord) root.MachineCheck {
			return root.MachineCheck{Ref: k.Ref, Image: k.Image.root(), Entrypoint: k.Entrypoint, Command: k.Command, Stop: root.Stop(k.Stop)}
		}),
	}
}

type deployRecord struct {
	Strategy       string        `json:"strategy,omitzero"`
	MaxUnavailable float64       `json:"max_unavailable,omitzero"`
	WaitTimeout    time.Duration `json:"wait_timeout_ns,omitzero"`
	ReleaseCommand []string      `json:"release_command,omitempty"`
	ReleaseTimeout time.Duration `json:"release_timeout_ns,omitzero"`
	ReleaseGuest   *guestRecord  `json:"release_guest,omitempty"`
	SeedCommand    []string      `json:"seed_command,omitempty"`
	Ran            int           `json:"ran,omitzero"`
	Unchecked      bool          `json:"unchecked,omitzero"`
	Restart        bool          `json:"restart,omitzero"`
	Smoke          bool          `json:"smoke,omitzero"`
	Detach         bool          `json:"detach,omitzero"`
	UpdateOnly     bool          `json:"update_only,omitzero"`
	Standby        bool          `json:"standby,omitzero"`
	MaxConcurrent  int           `json:"max_concurrent,omitzero"`
	Regions        []string      `json:"regions,omitempty"`
	OnlyGroups     []string      `json:"only_groups,omitempty"`
	OnlyMachines   []string      `json:"only_machines,omitempty"`
	Webhook        string        `json:"webhook,omitzero"`
}

func fromRelease(r root.Release) releaseRecord {
	d := r.Deploy
	return releaseRecord{
		V: releaseVersion, ID: string(r.ID), App: string(r.App), Version: r.Version, Image: fromImage(r.Image), Definition: r.Definition,
		Groups: convert(r.Groups, fromGroup),
		Routes: convert(r.Routes, func(t root.Route) routeRecord { return routeRecord(t) }),
		Deploy: deployRecord{
			Strategy: string(d.Strategy), MaxUnavailable: d.MaxUnavailable, WaitTimeout: d.WaitTimeout, ReleaseCommand: d.ReleaseCommand,
			ReleaseTimeout: d.ReleaseTimeout, ReleaseGuest: (*guestRecord)(d.ReleaseGuest), SeedCommand: d.SeedCommand, Ran: d.Ran, Unchecked: d.Unchecked, Restart: d.Restart,
			Smoke: d.Smoke, Detach: d.Detach, UpdateOnly: d.UpdateOnly, Standby: d.Standby, MaxConcurrent: d.MaxConcurrent,
			Regions: convert(d.Regions, func(r root.Region) string { return string(r) }), OnlyGroups: d.OnlyGroups,
			OnlyMachines: convert(d.OnlyMachines, func(m root.MachineID) string { return string(m) }), Webhook: d.Webhook,
		},
		Secrets: r.Secrets, Repeats: r.Repeats, Reason: r.Reason, Description: r.Description, Author: r.Author, CreatedAt: utc(r.CreatedAt),
	}
}

// root returns the release without its progress.
func (r releaseRecord) root() root.Release {
	d := r.Deploy
	return root.Release{
		ID: root.ReleaseID(r.ID), App: root.AppName(r.App), Version: r.Version, Image: r.Image.root(), Definition: r.Definition,
		Groups: convert(r.Groups, groupRecord.root),
		Routes: convert(r.Routes, func(t routeRecord) root.Route { return root.Route(t) }),
		Deploy: root.Deploy{
			Strategy: root.Strategy(d.Strategy), MaxUnavailable: d.MaxUnavailable, WaitTimeout: d.WaitTimeout, ReleaseCommand: d.ReleaseCommand,
			ReleaseTimeout: d.ReleaseTimeout, ReleaseGuest: (*root.Guest)(d.ReleaseGuest), SeedCommand: d.SeedCommand, Ran: d.Ran, Unchecked: d.Unchecked, Restart: d.Restart,
			Smoke: d.Smoke, Detach: d.Detach, UpdateOnly: d.UpdateOnly, Standby: d.Standby, MaxConcurrent: d.MaxConcurrent,
			Regions: convert(d.Regions, func(r string) root.Region { return root.Region(r) }), OnlyGroups: d.OnlyGroups,
			OnlyMachines: convert(d.OnlyMachines, func(m string) root.MachineID { return root.MachineID(m) }), Webhook: d.Webhook,
		},
		Secrets: r.Secrets, Repeats: r.Repeats, Reason: r.Reason, Description: r.Description, Author: r.Author, CreatedAt: r.CreatedAt,
	}
}

func fromImage(i root.Image) imageRecord {
	return imageRecord{i.Registry, i.Repository, i.Tag, string(i.Digest), i.Labels}
}

func (r imageRecord) root() root.Image {
	return root.Image{Registry: r.Registry, Repository: r.Repository, Tag: r.Tag, Digest: root.Digest(r.Digest), Labels: r.Labels}
}

// progressRecord is how far a release has come.
type progressRecord struct {
	V          int       `json:"v"`
	Status     string    `json:"status"`
	Message    string    `json:"message,omitzero"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
}

func fromProgress(p root.Progress) progressRecord {
	return progressRecord{progressVersion, string(p.Status), p.Message, utc(p.StartedAt), utc(p.FinishedAt)}
}

func (r progressRecord) root() root.Progress {
	return root.Progress{Status: root.ReleaseStatus(r.Status), Message: r.Message, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt}
}

type rolloutRecord struct {
	V         int      `json:"v"`
	App       string   `json:"app"`
	Version   int      `json:"version"`
	Former    int      `json:"former,omitzero"`
	Done      []string `json:"done,omitempty"`
	Passed    []string `json:"passed,omitempty"`
	Temporary string   `json:"temporary,omitzero"`
	Shifted   bool     `json:"shifted,omitzero"`
	Returning bool     `json:"returning,omitzero"`
	Status    string   `json:"status,omitzero"`
	Cause     string   `json:"cause,omitzero"`
}

func fromRollout(r root.Rollout) rolloutRecord {
	return rolloutRecord{
		rolloutVersion, string(r.App), r.Version, r.Former, r.Done, convert(r.Passed, func(m root.MachineID) string { return string(m) }),
		string(r.Temporary), r.Shifted, r.Returning, string(r.Status), r.Cause,
	}
}

func (r rolloutRecord) root() root.Rollout {
	return root.Rollout{
		App: root.AppName(r.App), Version: r.Version, Former: r.Former, Done: r.Done,
		Passed:    convert(r.Passed, func(m string) root.MachineID { return root.MachineID(m) }),
		Temporary: root.MachineID(r.Temporary), Shifted: r.Shifted, Returning: r.Returning, Status: root.ReleaseStatus(r.Status), Cause: r.Cause,
	}
}

// releaseEventRecord is an event of a release; its id is in the key, too.
type releaseEventRecord struct {
	V       int       `json:"v"`
	ID      string    `json:"id"`
	At      time.Time `json:"at,omitzero"`
	Step    string    `json:"step,omitzero"`
	Group   string    `json:"group,omitzero"`
	Machine string    `json:"machine,omitzero"`
	Message string    `json:"message,omitzero"`
	Warning bool      `json:"warning,omitzero"`
	Failed  bool      `json:"failed,omitzero"`
	Lines   []string  `json:"lines,omitempty"`
	Waiting string    `json:"waiting,omitzero"`
	Until   time.Time `json:"until,omitzero"`
	End     bool      `json:"end,omitzero"`
	URL     string    `json:"url,omitzero"`
}

func fromReleaseEvent(e root.ReleaseEvent) releaseEventRecord {
	return releaseEventRecord{
		releaseEventVersion, e.ID, utc(e.At), e.Step, e.Group, string(e.Machine), e.Message, e.Warning, e.Failed, e.Lines, e.Waiting, utc(e.Until), e.End, e.URL,
	}
}

func (r releaseEventRecord) root() root.ReleaseEvent {
	return root.ReleaseEvent{
		ID: r.ID, At: r.At, Step: r.Step, Group: r.Group, Machine: root.MachineID(r.Machine), Message: r.Message, Warning: r.Warning,
		Failed: r.Failed, Lines: r.Lines, Waiting: r.Waiting, Until: r.Until, End: r.End, URL: r.URL,
	}
}
