package buildkit

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/tonistiigi/fsutil"

	root "github.com/roost-run/roost"
)

const (
	frontendName = "dockerfile.v0"
	localContext = "context" // as the frontend calls them
	localFile    = "dockerfile"
	fileName     = "Dockerfile"
)

// Build is one image to be made.
type Build struct {
	Image      string // its name: a tag in our own registry
	Context    Tree
	Dockerfile []byte
	Name       string // of the Dockerfile, for messages; "" is "Dockerfile"
	Target     string
	Args       map[string]string
	Labels     map[string]string
	NoCache    bool
	// Secrets are what RUN --mount=type=secret,id=NAME may read.
	Secrets map[string][]byte
	// Scope names whose build it is: contexts, cache mounts and the results of
	// steps are shared within it only.
	Scope string
	// Repositories of our own registry that it may build on; nil: all.
	Repositories []string
	// Denied are foreign repositories that it may not build on.
	Denied []string
}

// Status is BuildKit's news of a build, for its progressui.
type Status = client.SolveStatus

// Build makes the image and returns its manifest's digest. Status, if set, is
// called with what happens, from one goroutine. When ctx ends the build is
// killed. Kinds: Invalid (what is wrong with the Dockerfile, or the step that
// failed, with its last lines; CodeBuildFailed), Exhausted (memory, disk),
// NotFound (a base image), Unavailable (its registry).
func (e *Engine) Build(ctx context.Context, b Build, status func(*Status)) (root.Digest, error) {
	if b.Name == "" {
		b.Name = fileName
	}
	if err := b.check(); err != nil {
		return "", err
	}
	seen := newStory()
	killed := e.killed()
	news := make(chan *client.SolveStatus)
	var wg sync.WaitGroup
	wg.Go(func() {
		for s := range news {
			seen.add(s)
			if status != nil {
				status(s)
			}
		}
	})
	resp, err := e.client.Solve(ctx, nil, e.options(b), news)
	wg.Wait()
	if err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", e.explain(err, b, seen, killed())
	}
	return root.Digest(resp.ExporterResponse[keyDigest]), nil
}

// killed begins to look out for processes that the kernel kills for memory.
func (e *Engine) killed() func() bool {
	if e.o.Killed != nil {
		if f, err := e.o.Killed(); err == nil { // else the message of a failure knows less
			return f
		}
	}
	return func() bool { return false }
}

func (e *Engine) options(b Build) client.SolveOpt {
	attrs := map[string]string{
		"filename": fileName,
		// The name after "# syntax=" is that of an image with the frontend.
		// Ours is built in; a command line of its own keeps it from looking.
		"cmdline": "",
		// Images of this host first; the store pulls what it lacks.
		"image-resolve-mode": "local",
		// It is part of what a step's result is remembered by.
		"hostname":                          "build-" + b.Scope,
		"build-arg:BUILDKIT_CACHE_MOUNT_NS": b.Scope,
		"build-arg:BUILDKIT_MULTI_PLATFORM": "0",
	}
	if b.Target != "" {
		attrs["target"] = b.Target
	}
	if b.NoCache {
		attrs["no-cache"] = ""
	}
	for k, v := range b.Labels {
		attrs["label:"+k] = v
	}
	for k, v := range b.Args {
		attrs["build-arg:"+k] = v
	}
	// The client has left out what .dockerignore names, and an ignore file
	// beside the Dockerfile keeps the frontend from reading another one.
	files := Files{fileName: b.Dockerfile, fileName + ".dockerignore": []byte("# see the client\n")}
	return client.SolveOpt{
		Frontend:      frontendName,
		FrontendAttrs: attrs,
		LocalMounts:   map[string]fsutil.FS{localContext: &treeFS{tree: b.Context}, localFile: &treeFS{tree: files}},
		SharedKey:     b.Scope,
		Session:       []session.Attachable{secretsprovider.FromMap(b.Secrets)},
		Exports:       []client.ExportEntry{{Type: exporterName, Attrs: map[string]string{attrName: b.Image}}},
		Internal:      true, // no record in a history
		SourcePolicy:  e.policy(b),
	}
}

// policy keeps a build from other people's images in our own registry, under
// whichever of its names. The last rule that matches counts.
func (e *Engine) policy(b Build) *spb.Policy {
	if b.Repositories == nil {
		return nil
	}
	rule := func(action spb.PolicyAction, image string) *spb.Rule {
		return &spb.Rule{Action: action, Selector: &spb.Selector{Identifier: "docker-image://" + image, MatchType: spb.MatchType_WILDCARD}}
	}
	names := append([]string{e.o.Registry}, e.o.Addresses...)
	rules := []*spb.Rule{rule(spb.PolicyAction_DENY, e.o.Registry+":*")} // the store takes any port for its own
	for _, name := range names {
		rules = append(rules, rule(spb.PolicyAction_DENY, name+"/*"))
	}
	for _, name := range names {
		for _, r := range b.Repositories {
			rules = append(rules, rule(spb.PolicyAction_ALLOW, name+"/"+r+":*"), rule(spb.PolicyAction_ALLOW, name+"/"+r+"@*"))
		}
	}
	for _, r := range b.Denied {
		rules = append(rules, rule(spb.PolicyAction_DENY, r+":*"), rule(spb.PolicyAction_DENY, r+"@*"))
	}
	return &spb.Policy{Version: 1, Rules: rules}
}

// reserved build arguments are the frontend's own switches.
const reservedArgs = "BUILDKIT_"

func (b *Build) check() error {
	if len(strings.TrimSpace(string(b.Dockerfile))) == 0 {
		return root.Errorf(root.Invalid, "%s is empty", b.Name)
	}
	for k := range b.Args {
		if strings.HasPrefix(k, reservedArgs) && !allowedArgs[k] {
			return root.Errorf(root.Invalid, "build argument %s is BuildKit's own and cannot be set here", k)
		}
	}
	for id, v := range b.Secrets {
		if len(v) > secretsprovider.MaxSecretSize {
			return root.Errorf(root.TooLarge, "build secret %s is larger than %s", id, root.Bytes(secretsprovider.MaxSecretSize))
		}
	}
	return b.checkPlatforms()
}

// allowedArgs of BuildKit's do nothing to others.
var allowedArgs = map[string]bool{"BUILDKIT_INLINE_CACHE": true, "BUILDKIT_CONTEXT_KEEP_GIT_DIR": true, "BUILDKIT_DOCKERFILE_CHECK": true}

// Prune brings the cache within its budget, what was not used for longest
// first. Layers that images consist of count, and are forgotten with the rest,
// but the store keeps them.
func (e *Engine) Prune(ctx context.Context) error {
	gone := make(chan client.UsageInfo)
	var wg sync.WaitGroup
	n := 0
	wg.Go(func() {
		for range gone {
			n++
		}
	})
	err := e.worker.Prune(ctx, gone, client.PruneInfo{MaxUsedSpace: int64(e.o.Cache), ReservedSpace: int64(e.o.Cache / 2), All: false})
	close(gone)
	wg.Wait()
	if err != nil {
		return fmt.Errorf("prune the build cache: %w", err)
	}
	if n == 0 {
		return nil
	}
	e.o.Log.Info("build cache pruned", "records", n)
	return e.worker.GarbageCollect(ctx)
}
