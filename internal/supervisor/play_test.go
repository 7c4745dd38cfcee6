package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
)

// play is the test binary as a server process, or as one of its children.
func play(role string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == childEdge:
		err = playEdge(ctx, os.Args[3])
	case len(os.Args) == 4 && os.Args[1] == childBuilder:
		err = playBuilder(ctx, os.Args[3])
	case len(os.Args) == 4 && os.Args[1] == childControl:
		<-ctx.Done()
	case role == "server":
		var cfg config.Config
		if err = json.Unmarshal([]byte(os.Getenv("ROOST_TEST_CONFIG")), &cfg); err == nil {
			err = Run(ctx, cfg)
		}
	default:
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// playEdge answers every request with its own process id and holds all
// sockets.
func playEdge(ctx context.Context, run string) error {
	cfg, err := config.ReadEffective(run)
	if err != nil {
		return err
	}
	c := orders.NewClient(cfg.SupervisorSocket())
	defer c.Close()
	names, files, err := c.Listeners(ctx)
	if err != nil {
		return err
	}
	instances, err := c.Instances(ctx)
	if err != nil {
		return err
	}
	for _, i := range instances {
		f, err := c.Socket(ctx, i.Instance)
		if err != nil {
			return err
		}
		defer f.Close()
	}
	s := &http.Server{ReadHeaderTimeout: patience.Limit, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })}
	for i, name := range names {
		if name.Kind != orders.ListenEdge {
			continue
		}
		l, err := net.FileListener(files[i])
		if err != nil {
			return err
		}
		go func() { _ = s.Serve(l) }()
	}
	<-ctx.Done()
	return s.Close()
}

// playBuilder opens the builder's socket and ends at the first request.
func playBuilder(ctx context.Context, run string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", (&config.Config{Run: run}).BuilderSocket())
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	s := &http.Server{ReadHeaderTimeout: patience.Limit, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stop() })}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
