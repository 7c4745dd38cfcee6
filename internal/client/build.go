package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/roost-run/roost/internal/buildcontext"
	"github.com/roost-run/roost/machines"
)

// Kinds of builds.
const (
	BuildDockerfile = "dockerfile"
	BuildGo         = "go"
)

// BuildRequest is an image to be made from a directory on this computer.
type BuildRequest struct {
	App string
	Dir string

	// Kind is BuildDockerfile or BuildGo; "" is the former if there is a
	// Dockerfile, else the latter if there is a go.mod.
	Kind       string
	Dockerfile string            // path on this computer; "" is Dir's Dockerfile
	IgnoreFile string            // path on this computer; "" is <Dockerfile>.dockerignore, else Dir's .dockerignore
	Target     string            // stage; "" is the last one
	Args       map[string]string // build arguments
	Labels     map[string]string // of the image
	NoCache    bool
	Package    string // of a Go build: directory of the main package below Dir; "" is "."

	// Secrets are what RUN --mount=type=secret,id=NAME may read, by name.
	Secrets map[string]string
	// AppSecrets are names of the app's own secrets that it may read, too.
	AppSecrets []string

	Cache string // directory for digests of files between builds; "" keeps none
}

// BuildSpec is what the platform is asked to build: a context it has been sent.
type BuildSpec struct {
	Kind           string            `json:"kind"`
	Context        string            `json:"context"` // ContextState.ID
	Dockerfile     string            `json:"dockerfile,omitempty"`
	DockerfileName string            `json:"dockerfile_name,omitempty"` // for messages
	Target         string            `json:"target,omitempty"`
	Args           map[string]string `json:"args,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	NoCache        bool              `json:"no_cache,omitempty"`
	Package        string            `json:"package,omitempty"`
	Secrets        map[string]string `json:"secrets,omitempty"`
	AppSecrets     []string          `json:"app_secrets,omitempty"`
}

// ContextState is what the platform has of a build context.
type ContextState struct {
	ID      string          `json:"id"`
	Missing []digest.Digest `json:"missing,omitempty"` // to be sent
}

// Upload is how far a build context has come.
type Upload struct {
	Files   int   `json:"files"`   // of the context
	Sending int   `json:"sending"` // of them, what the platform lacks
	Bytes   int64 `json:"bytes"`   // to be sent
	Sent    int64 `json:"sent"`
}

// uploadTries is how often a broken upload is taken up again; what arrived
// stays.
const uploadTries = 5

// Build sends what the platform lacks of the directory, and has it built.
// Progress, if set, is called from one goroutine. When ctx ends the build is
// cancelled; what was sent stays for the next one.
func (c *Client) Build(ctx context.Context, r BuildRequest, progress func(Progress)) (Image, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	spec, scan, err := r.prepare()
	if err != nil {
		return Image{}, err
	}
	scanned, err := buildcontext.Scan(ctx, r.Dir, scan)
	if err != nil {
		return Image{}, err
	}
	for try := 1; ; try++ {
		spec.Context, err = c.upload(ctx, r.App, scanned, progress)
		if err == nil {
			break
		}
		if _, answered := errors.AsType[*machines.Error](err); answered || ctx.Err() != nil || try == uploadTries {
			return Image{}, err
		}
		select {
		case <-time.After(time.Duration(try) * time.Second / 2):
		case <-ctx.Done():
			return Image{}, context.Cause(ctx)
		}
	}
	body, err := json.Marshal(spec)
	if err != nil {
		return Image{}, fmt.Errorf("build: %w", err)
	}
	req, err := c.post(ctx, buildsPath(r.App), body)
	if err != nil {
		return Image{}, err
	}
	return c.progress(req, progress)
}

func buildsPath(app string) string { return prefix + "/apps/" + url.PathEscape(app) + "/builds" }

// Check says what Build would complain of before it asks anybody.
func (r *BuildRequest) Check() error {
	_, _, err := r.prepare()
	return err
}

// prepare finds out what to build.
func (r *BuildRequest) prepare() (BuildSpec, buildcontext.Options, error) {
	spec := BuildSpec{
		Kind: r.Kind, Target: r.Target, Args: r.Args, Labels: r.Labels, NoCache: r.NoCache, Package: r.Package,
		Secrets: r.Secrets, AppSecrets: r.AppSecrets,
	}
	scan := buildcontext.Options{Ignore: r.IgnoreFile}
	if fi, err := os.Stat(r.Dir); err != nil || !fi.IsDir() {
		return spec, scan, fmt.Errorf("%s is not a directory: name the one to build", r.Dir)
	}
	file := r.Dockerfile
	if file == "" {
		file = filepath.Join(r.Dir, "Dockerfile")
	}
	if spec.Kind != BuildGo {
		data, err := os.ReadFile(file)
		switch {
		case err == nil:
			spec.Kind, spec.Dockerfile, spec.DockerfileName = BuildDockerfile, string(data), filepath.Base(file)
			scan.Dockerfile = file
		case !errors.Is(err, fs.ErrNotExist):
			return spec, scan, err
		case r.Dockerfile != "":
			return spec, scan, fmt.Errorf("there is no Dockerfile at %s", r.Dockerfile)
		case spec.Kind == "" && exists(filepath.Join(r.Dir, "go.mod")):
			spec.Kind = BuildGo
		default:
			return spec, scan, fmt.Errorf("there is no Dockerfile in %s: write one, name it with --dockerfile, or let `roost launch` make one", r.Dir)
		}
	}
	scan.NoHidden = spec.Kind == BuildGo
	if r.Cache != "" {
		abs, err := filepath.Abs(r.Dir)
		if err != nil {
			return spec, scan, err
		}
		scan.Cache = filepath.Join(r.Cache, digest.FromString(abs).Encoded()[:32]+".json")
	}
	return spec, scan, nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// upload sends the manifest, then the files that the platform asks for.
func (c *Client) upload(ctx context.Context, app string, s *buildcontext.Scanned, progress func(Progress)) (id string, err error) {
	state, err := call[ContextState](ctx, c, http.MethodPost, buildsPath(app)+"/contexts", s.Manifest)
	if err != nil {
		return "", err
	}
	blobs, err := s.Blobs()
	if err != nil {
		return "", err
	}
	up := Upload{Files: len(s.Entries), Sending: len(state.Missing)}
	for _, d := range state.Missing {
		up.Bytes += blobs[d]
	}
	show := func() { u := up; progress(Progress{Upload: &u}) }
	show()
	if len(state.Missing) == 0 {
		return state.ID, nil
	}
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() { // ends when all is sent, or the request, which closes the pipe
		err := s.Write(pw, state.Missing)
		pw.CloseWithError(err)
		written <- err
	}()
	sent := make(chan int64, 1)
	body := &counted{r: pr, report: sent}
	answer := make(chan error, 1)
	go func() { // ends with the request
		answer <- c.sendBlobs(ctx, app, state.ID, body)
		_ = pr.Close() // of a pipe in memory: cannot fail
	}()
	for {
		select {
		case up.Sent = <-sent:
			show()
			continue
		case err = <-answer:
		}
		break
	}
	if broken := <-written; broken != nil && !errors.Is(broken, io.ErrClosedPipe) {
		return "", broken // why the request failed
	}
	if err == nil {
		up.Sent = up.Bytes
		show()
	}
	return state.ID, err
}

func (c *Client) sendBlobs(ctx context.Context, app, id string, body io.Reader) error {
	req, err := c.NewRequest(ctx, http.MethodPut, buildsPath(app)+"/contexts/"+url.PathEscape(id)+"/blobs", body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.Send(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// counted reports now and then how much was read; the latest number matters.
type counted struct {
	r      io.Reader
	n      int64
	report chan int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	select {
	case c.report <- c.n:
	default:
	}
	return n, err
}
