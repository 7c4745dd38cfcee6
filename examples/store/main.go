// Command store is an example app: a shop with products, purchases and
// receipts as PDF documents. Receipts are heavy, so they run on a serverless
// machine (package serverless); everything else runs on the app machines.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/roost-run/roost/serverless"
)

// countStatus is the exit status of -count: an unusual one, to see that it
// arrives where the command was asked for.
const countStatus = 3

func main() {
	count := flag.Bool("count", false, fmt.Sprintf("print how many purchases there are and exit with status %d", countStatus))
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if *count {
		status := countStatus
		if err := printCount(ctx, os.Stdout); err != nil {
			log.Error("count ended", "err", err)
			status = 1
		}
		stop()
		os.Exit(status)
	}
	if err := run(ctx, os.Getenv, log, func(net.Addr) {}); err != nil {
		log.Error("store ended", "err", err)
		stop()
		os.Exit(1)
	}
}

// printCount is a one-off command: it runs on a machine of its own.
func printCount(ctx context.Context, w io.Writer) error {
	store, err := openStore(ctx, defaultPurchases)
	if err != nil {
		return err
	}
	defer store.close()
	n, err := store.count(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%d purchases\n", n)
	return err
}

// drainTimeout is how long requests may still take when the machine stops; it
// has to be shorter than the machine's stop_config.timeout.
const drainTimeout = 4 * time.Second

// run serves until ctx ends, then lets requests in flight finish. listening is
// called with the address once it is known.
func run(ctx context.Context, getenv func(string) string, log *slog.Logger, listening func(net.Addr)) error {
	began := time.Now()
	purchases, err := purchaseCount(getenv)
	if err != nil {
		return err
	}
	store, err := openStore(ctx, purchases)
	if err != nil {
		return err
	}
	defer store.close()
	options, err := serverlessOptions(getenv, log)
	if err != nil {
		return err
	}
	sl := serverless.New(options)
	defer sl.Close()

	port := getenv("PORT")
	if port == "" {
		port = "8080"
	}
	machine := getenv("FLY_MACHINE_ID")
	if machine == "" {
		machine = "local"
	}
	server := &http.Server{
		Handler:           sl.Wrap(newSite(store, machine, rand.Text(), log)),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute, // longer than the proxy keeps a connection
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "0.0.0.0:"+port)
	if err != nil {
		return err
	}
	log.Info("listening", "address", listener.Addr().String(), "machine", machine, "took", time.Since(began))
	listening(listener.Addr())
	return serve(ctx, server, listener, log)
}

// serve answers requests until ctx ends, then lets those in flight finish.
func serve(ctx context.Context, server *http.Server, listener net.Listener, log *slog.Logger) error {
	served := make(chan error, 1) // one result, so Serve never waits for a reader
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	log.Info("stopping, requests in flight may finish")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	if s := <-served; !errors.Is(s, http.ErrServerClosed) {
		err = errors.Join(err, s)
	}
	return err
}

func purchaseCount(getenv func(string) string) (int, error) {
	value := getenv("PURCHASES")
	if value == "" {
		return defaultPurchases, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > 1_000_000 {
		return 0, fmt.Errorf("PURCHASES: %q is not a number from 1 to 1000000", value)
	}
	return n, nil
}

// serverlessOptions reads how long the serverless machine idles before it is
// suspended, and stays so before it is stopped, and how long a request waits
// for it.
func serverlessOptions(getenv func(string) string, log *slog.Logger) (serverless.Options, error) {
	o := serverless.Options{
		Routes: []string{"GET /purchases/receipts", "GET /purchases/{id}/receipt"},
		Logger: log,
		Getenv: getenv,
	}
	for name, field := range map[string]*time.Duration{
		"SERVERLESS_STOP_AFTER": &o.IdleStop, "SERVERLESS_SUSPEND_FOR": &o.SuspendFor, "SERVERLESS_PATIENCE": &o.Patience,
	} {
		value := getenv(name)
		if value == "" {
			continue
		}
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			return o, fmt.Errorf("%s: %q is not a duration such as \"90s\"", name, value)
		}
		*field = d
	}
	return o, nil
}
