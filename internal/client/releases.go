package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/roost-run/roost/machines"
)

// NewRelease asks for a release, or (Plan) what one would change. Members that
// are not set leave what the definition says.
type NewRelease struct {
	// Definition is the app's config: fly.toml as JSON, with the names it has
	// there. With neither Definition nor Image there is nothing to release;
	// without Definition the current release's is taken.
	Definition json.RawMessage `json:"definition,omitempty"`
	// Image is the reference of an image on the host, best with its digest;
	// "" takes the current release's.
	Image       string `json:"image,omitempty"`
	Reason      string `json:"reason,omitempty"` // "deploy" if empty; "env", "scale" ...
	Description string `json:"description,omitempty"`

	Strategy       string   `json:"strategy,omitempty"` // rolling, canary, bluegreen, immediate
	MaxUnavailable *float64 `json:"max_unavailable,omitempty"`
	WaitTimeout    string   `json:"wait_timeout,omitempty"` // Go duration
	// ReleaseTimeout bounds the release command; "0s" is unlimited.
	ReleaseTimeout string `json:"release_command_timeout,omitempty"`
	MaxConcurrent  int    `json:"max_concurrent,omitempty"`
	SmokeChecks    *bool  `json:"smoke_checks,omitempty"`
	HA             *bool  `json:"ha,omitempty"` // first machines of a group come in twos
	Detach         bool   `json:"detach,omitempty"`
	UpdateOnly     bool   `json:"update_only,omitempty"`
	SkipRelease    bool   `json:"skip_release_command,omitempty"`
	// RunRelease runs the release command although nothing has changed since
	// it ran last.
	RunRelease bool     `json:"run_release_command,omitempty"`
	Regions    []string `json:"regions,omitempty"`
	Groups     []string `json:"process_groups,omitempty"`
	Machines   []string `json:"only_machines,omitempty"`
	Webhook    string   `json:"webhook,omitempty"` // told of the end by POST
}

// Release is one version of what an app runs.
type Release struct {
	ID          string          `json:"id"`
	App         string          `json:"app"`
	Version     int             `json:"version"`
	Status      string          `json:"status"`            // pending, running, complete, failed, interrupted
	Message     string          `json:"message,omitempty"` // why it failed, for people
	Current     bool            `json:"current"`           // it is the one that serves
	Image       string          `json:"image"`             // registry/repository:tag@digest
	Strategy    string          `json:"strategy"`
	Reason      string          `json:"reason"`
	Description string          `json:"description,omitempty"`
	Author      string          `json:"author,omitempty"`
	Secrets     int             `json:"secrets_version,omitempty"`
	Groups      []string        `json:"process_groups"`
	CreatedAt   time.Time       `json:"created_at"`
	StartedAt   time.Time       `json:"started_at,omitzero"`
	FinishedAt  time.Time       `json:"finished_at,omitzero"`
	Definition  json.RawMessage `json:"definition,omitempty"` // where one release is asked for
	Repeats     int             `json:"repeats,omitempty"`    // the version that a rollback brought back
	Warnings    []string        `json:"warnings,omitempty"`   // in the reply to a new one
	BackTo      int             `json:"back_to,omitempty"`    // in the reply to a rollback: where it goes
	Why         string          `json:"why,omitempty"`        // and why there, when nobody said where
}

// Final reports whether nothing more happens to the release.
func (r *Release) Final() bool {
	return r.Status == "complete" || r.Status == "failed" || r.Status == "interrupted"
}

// The steps of a rollout, as events name them.
const (
	StepPrepare        = "prepare"
	StepReleaseCommand = "release_command"
	StepSeedCommand    = "seed_command"
	StepCanary         = "canary"
	StepDestroy        = "destroy"
	StepCreate         = "create"
	StepUpdate         = "update"
	StepMachineCheck   = "machine_check"
	StepShift          = "shift" // bluegreen: traffic goes to the new machines
	StepVerify         = "verify"
	StepRollback       = "rollback" // a failed release returns to the one before
	StepNotice         = "notice"
	StepWebhook        = "webhook"
	StepEnd            = "end"
)

// ReleaseEvent is something that happened in a rollout, in order. The last one
// has Release.
type ReleaseEvent struct {
	ID      string    `json:"id"` // orders events; see FollowRelease
	At      time.Time `json:"at"`
	Step    string    `json:"step"`
	Group   string    `json:"group,omitempty"`
	Machine string    `json:"machine,omitempty"`
	Message string    `json:"message,omitempty"`
	Warning bool      `json:"warning,omitempty"`
	Failed  bool      `json:"failed,omitempty"` // this step did not succeed; Message says why
	URL     string    `json:"url,omitempty"`    // where the app answered
	Output  *string   `json:"output,omitempty"` // a line that the release command wrote
	Waiting *Waiting  `json:"waiting,omitempty"`
	Release *Release  `json:"release,omitempty"` // as it ended
	Error   *Failure  `json:"error,omitempty"`   // the stream broke: no event of the release
}

// End reports whether this is the release's last event.
func (e *ReleaseEvent) End() bool { return e.Release != nil }

// Waiting says what a rollout waits for.
type Waiting struct {
	For   string    `json:"for"`            // "machine 148e... to pass its checks"
	Until time.Time `json:"until,omitzero"` // then it gives up
	Left  float64   `json:"left,omitempty"` // seconds until then, when the event was sent
}

// ReleasePlan is what a deploy would change.
type ReleasePlan struct {
	Release  int         `json:"release"` // that serves now, 0 none
	Image    Difference  `json:"image"`
	Strategy string      `json:"strategy"`
	Command  []string    `json:"release_command,omitempty"`
	Groups   []PlanGroup `json:"process_groups"`
	// Foreign are machines that belong to the app and not to its releases.
	Foreign  []PlanMachine `json:"other_machines,omitempty"`
	Warnings []string      `json:"warnings,omitempty"`
}

// PlanGroup is what a deploy would do to a process group.
type PlanGroup struct {
	Name     string        `json:"name"`
	Change   string        `json:"change"` // "create", "update", "restart" (nothing but the release), "destroy"
	Config   []Difference  `json:"config,omitempty"`
	Machines []PlanMachine `json:"machines"`
}

// PlanMachine is what a deploy would do to a machine.
type PlanMachine struct {
	ID     string `json:"id,omitempty"` // "" one that does not exist yet
	Name   string `json:"name,omitempty"`
	Region string `json:"region,omitempty"`
	State  string `json:"state,omitempty"`
	Action string `json:"action"` // "create", "update", "replace", "destroy", "keep"
	Why    string `json:"why,omitempty"`
	Image  string `json:"image,omitempty"`
}

// Difference is a member of a machine's config that changes.
type Difference struct {
	Path string          `json:"path,omitempty"` // "guest.memory_mb"
	From json.RawMessage `json:"from,omitempty"` // absent: not there before
	To   json.RawMessage `json:"to,omitempty"`   // absent: no longer there
}

// Rollback asks for a release that is a former one again.
type Rollback struct {
	Description string `json:"description,omitempty"`
	Detach      bool   `json:"detach,omitempty"`
	Strategy    string `json:"strategy,omitempty"`
	// CurrentSecrets runs the former release with the app's secrets of now; else
	// it gets those that it ran with.
	CurrentSecrets bool `json:"current_secrets,omitempty"`
	// DryRun answers with what the release would be; nothing changes.
	DryRun bool `json:"dry_run,omitempty"`
}

func releasesPath(app string) string { return prefix + "/apps/" + url.PathEscape(app) + "/releases" }

func releasePath(app string, version int) string {
	return releasesPath(app) + "/" + strconv.Itoa(version)
}

// CreateRelease begins a release and returns at once: the rollout goes on
// whether or not anybody watches (FollowRelease). Status 409, code
// "release_in_progress", while another one of the app is rolled out.
func (c *Client) CreateRelease(ctx context.Context, app string, in NewRelease) (Release, error) {
	return call[Release](ctx, c, http.MethodPost, releasesPath(app), in)
}

// PlanRelease says what CreateRelease would change; it changes nothing.
func (c *Client) PlanRelease(ctx context.Context, app string, in NewRelease) (ReleasePlan, error) {
	return call[ReleasePlan](ctx, c, http.MethodPost, releasesPath(app)+"/plan", in)
}

// Releases lists an app's releases, the newest first, without definitions.
func (c *Client) Releases(ctx context.Context, app string) ([]Release, error) {
	return get[[]Release](ctx, c, releasesPath(app))
}

// Release returns one release; version 0 is the one that serves now.
func (c *Client) Release(ctx context.Context, app string, version int) (Release, error) {
	return get[Release](ctx, c, releasePath(app, version))
}

// RollBack begins a release with image, config and secrets of a former one;
// version 0 is the newest complete one that is older than what serves.
func (c *Client) RollBack(ctx context.Context, app string, version int, in Rollback) (Release, error) {
	return call[Release](ctx, c, http.MethodPost, releasePath(app, version)+"/rollback", in)
}

// CancelRelease ends a rollout under way; what it changed goes back.
func (c *Client) CancelRelease(ctx context.Context, app string, version int) error {
	return c.Do(ctx, http.MethodPost, releasePath(app, version)+"/cancel", nil, nil)
}

const (
	// followPause is between attempts to go on following.
	followPause = 500 * time.Millisecond
	// followPatience is how long the platform may be away: its control process
	// restarts in a second, an upgrade takes longer.
	followPatience = 2 * time.Minute
)

// FollowRelease calls f with each event of a release, from the one behind the
// id after ("" the first), and returns the release as it ended. When the
// platform goes away for a while it goes on where it was, and f hears of both:
// by notices of this client's own, which have no id.
func (c *Client) FollowRelease(ctx context.Context, app string, version int, after string, f func(ReleaseEvent) error) (Release, error) {
	failing, told := time.Time{}, false
	notice := func(text string) error {
		if told = !told; f == nil {
			return nil
		}
		return f(ReleaseEvent{At: time.Now(), Step: StepNotice, Message: text})
	}
	for {
		end, last, err := c.followOnce(ctx, app, version, after, func(e ReleaseEvent) error {
			if told {
				if err := notice("the platform answers again"); err != nil {
					return err
				}
			}
			if f == nil {
				return nil
			}
			return f(e)
		})
		if end != nil {
			return *end, nil
		}
		if last != after {
			failing, after = time.Time{}, last
		}
		if stop, ok := errors.AsType[*stopped](err); ok {
			return Release{}, stop.err
		}
		if e, ok := errors.AsType[*machines.Error](err); ok && e.Status < http.StatusInternalServerError {
			return Release{}, err
		}
		if ctx.Err() != nil {
			return Release{}, context.Cause(ctx)
		}
		switch {
		case failing.IsZero(): // control is back at once, usually
			failing = time.Now()
		case time.Since(failing) > followPatience:
			return Release{}, err
		case !told:
			if err := notice("the platform does not answer: the rollout goes on when it does; waiting"); err != nil {
				return Release{}, err
			}
		}
		select {
		case <-ctx.Done():
			return Release{}, context.Cause(ctx)
		case <-time.After(followPause):
		}
	}
}

// stopped is an error of the caller's own function.
type stopped struct{ err error }

func (e *stopped) Error() string { return e.err.Error() }

func (c *Client) followOnce(ctx context.Context, app string, version int, after string, f func(ReleaseEvent) error) (end *Release, last string, err error) {
	last = after
	q := url.Values{"follow": {"true"}}
	if after != "" {
		q.Set("after", after)
	}
	req, err := c.NewRequest(ctx, http.MethodGet, releasePath(app, version)+"/events?"+q.Encode(), nil)
	if err != nil {
		return nil, last, err
	}
	resp, err := c.Send(req)
	if err != nil {
		return nil, last, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var e ReleaseEvent
		if err := dec.Decode(&e); err != nil {
			return nil, last, broken(ctx, "the platform ended the stream of the release's events", err)
		}
		if e.Error != nil {
			return nil, last, e.Error.err(resp)
		}
		last = e.ID
		if err := f(e); err != nil {
			return nil, last, &stopped{err}
		}
		if e.Release != nil {
			return e.Release, last, nil
		}
	}
}

// ReleaseEvents returns the events of a release so far.
func (c *Client) ReleaseEvents(ctx context.Context, app string, version int) ([]ReleaseEvent, error) {
	req, err := c.NewRequest(ctx, http.MethodGet, releasePath(app, version)+"/events", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Send(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var events []ReleaseEvent
	dec := json.NewDecoder(resp.Body)
	for {
		var e ReleaseEvent
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return events, broken(ctx, "the platform ended the stream of the release's events", err)
		}
		if e.Error != nil {
			return events, e.Error.err(resp)
		}
		events = append(events, e)
	}
}
