package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/balance"
	"github.com/roost-run/roost/internal/proxy/replay"
)

const (
	// expectTimeout is how long a machine may take to say 100 Continue before
	// the body is sent anyway.
	expectTimeout = time.Second
	// maxReplays per request (Fly docs, PA02).
	maxReplays = 10
	// maxDiscard is how much of a replaying response is read so that its
	// connection can be used again.
	maxDiscard = 256 << 10
	// writeTimeout ends an answer whose client reads nothing for so long: it
	// would keep its machine awake.
	writeTimeout = 5 * time.Minute
	smallAnswer  = 16 << 10
	// maxResends bounds how often a request is sent again after a machine
	// broke the connection without an answer.
	maxResends = 2
)

// serveHTTP answers one request that came in on an outside port.
func (p *Proxy) serveHTTP(w http.ResponseWriter, r *http.Request, port int) {
	now := time.Now()
	x := &exchange{id: ulid.Make().String() + "-" + string(p.o.Region), start: now, r: r, port: port, deadline: now.Add(p.o.HoldTimeout)}
	x.stamp(w.Header())
	if c, ok := r.Context().Value(patienceKey{}).(*patience); ok {
		c.requests.Add(1)
	}
	defer p.record(x)
	if r.Header.Get("Upgrade") != "" {
		defer func() {
			if !x.rec.Upgraded {
				decide(r, moreHTTP)
			}
		}()
	}
	//nolint:contextcheck // x has the request; a wake serves whoever comes next, too: it does not end with the request that began it
	if f := p.exchange(w, x); f != nil {
		x.rec.Code, x.rec.Status = f.Code, f.Status
		x.rec.Err = f.Message
		if f.err != nil {
			x.rec.Err += ": " + f.err.Error()
		}
		if f.Status == statusClientClosed {
			p.takenBack(r)
			panic(http.ErrAbortHandler) // nobody listens any more
		}
		p.part(w.Header())
		x.rec.Bytes = int64(f.write(w, r, x.id))
	}
}

func (p *Proxy) record(x *exchange) {
	r, rec := x.r, &x.rec
	p.o.Metrics.Request(rec.Status, rec.Code, time.Since(x.start), x.held, x.hops)
	p.notify(x)
	if p.o.Access == nil {
		return
	}
	rec.At, rec.ID, rec.App = x.start, x.id, string(x.app)
	rec.Client, rec.Method, rec.Host, rec.Path, rec.Proto, rec.Agent = r.RemoteAddr, r.Method, r.Host, r.URL.Path, r.Proto, r.Header.Get("User-Agent")
	rec.Took, rec.Held = time.Since(x.start), x.held
	rec.Replays = x.hops
	rec.TookMS, rec.HeldMS = millis(rec.Took), millis(rec.Held)
	p.o.Access(rec)
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// exchange finds a machine and delivers the request, again and again if
// machines ask for it. A failure it returns is not yet written.
func (p *Proxy) exchange(w http.ResponseWriter, x *exchange) *failure {
	r := x.r
	if why := r.Header.Get(refusedHeader); why != "" {
		w.Header().Set("Connection", "close")
		return failf(http.StatusBadRequest, "PU01", "client problem: %s", why)
	}
	if r.Host == "" {
		return failf(http.StatusBadRequest, "PU01", "client problem: no host specified in headers or uri").
			hint("Send a Host header with the app's name, such as my-app.%s.", p.o.Domain)
	}
	if r.Method == http.MethodConnect {
		w.Header().Set("Connection", "close")
		return failf(http.StatusMethodNotAllowed, "PU01", "client problem: CONNECT is for forward proxies")
	}
	if p.challenged(w, x) {
		return nil
	}
	app, ok := p.find(p.o.Catalog.Snapshot(), r.Host)
	if !ok {
		return failf(http.StatusNotFound, "PA04", "no app answers at %s", clip(r.Host)).
			hint("Apps answer at <app>.%s. A hostname of your own leads to an app after: roost certs add HOSTNAME -a APP", p.o.Domain)
	}
	x.app = app
	if answered, f := p.onPort(w, x); answered || f != nil {
		return f
	}
	if answered, f := p.static(w, x); answered || f != nil {
		return f
	}
	if f := x.steer(r.Header, p.o.Region); f != nil {
		return f
	}
	if r.ContentLength != 0 {
		// Or net/http reads the whole body before it sends the answer's first byte.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			return failf(http.StatusBadGateway, "PU04", "the request cannot be forwarded").cause(err)
		}
		x.body = newBody(&p.bodies, r.Body, r.ContentLength)
		defer x.body.free()
	}
	resends := 0
	for {
		if x.attempts++; x.attempts > maxAttempts {
			return failf(http.StatusServiceUnavailable, "PR03", "could not find a good candidate within %d attempts", maxAttempts).retry()
		}
		s, f := p.acquire(r.Context(), x)
		if f != nil {
			if p.fallBack(x, f) {
				continue
			}
			return f
		}
		again, f := p.deliver(w, x, s, &resends)
		if f != nil && mayFallBack(f) && p.fallBack(x, f) {
			continue
		}
		if !again || f != nil {
			return f
		}
	}
}

// deliver sends the request to the slot's machine and answers the client,
// unless the request is to go round again.
func (p *Proxy) deliver(w http.ResponseWriter, x *exchange, s *slot, resends *int) (again bool, _ *failure) {
	defer s.release()
	x.rec.Machine, x.rec.Woken = string(s.Machine.ID), x.rec.Woken || s.frozen
	ctx := x.r.Context()
	answered := func() {}
	if s.frozen {
		// What is written to a machine that then cannot be woken is never answered.
		c, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		a := &attempt{cancel: cancel}
		s.b.add(a)
		defer s.b.remove(a)
		ctx = c
		// It waits for the machine like those that are held.
		if !p.queue.Enter(x.app) {
			return false, p.crowded(x)
		}
		leave := sync.OnceFunc(func() { p.queue.Leave(x.app) })
		defer leave()
		answered = leave
	}
	out := p.outgoing(ctx, x, s)
	resp, err := s.b.transport.RoundTrip(out)
	answered()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return p.undelivered(x, s, err, resends)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return false, p.upgrade(w, x, s, resp)
	}
	if v := resp.Header[replay.Header]; len(v) > 0 || isReplayJSON(resp.Header) {
		return true, p.replay(x, s, resp)
	}
	p.respond(w, x, s, resp)
	return false, nil
}

func (p *Proxy) outgoing(ctx context.Context, x *exchange, s *slot) *http.Request {
	out := (&http.Request{
		Method: x.r.Method, URL: x.url(s), Host: x.r.Host, Header: p.requestHeader(x),
		ProtoMajor: 1, ProtoMinor: 1, ContentLength: x.r.ContentLength, Trailer: x.r.Trailer,
	}).WithContext(ctx)
	if x.body != nil {
		out.Body = x.body.reader()
		if x.body.fromStart() {
			out.GetBody = func() (io.ReadCloser, error) {
				if !x.body.fromStart() {
					return nil, errors.New("the body was not kept")
				}
				return x.body.reader(), nil
			}
		}
	}
	return out
}

// undelivered decides what follows when a machine did not answer.
func (p *Proxy) undelivered(x *exchange, s *slot, err error, resends *int) (again bool, _ *failure) {
	if x.body != nil && errors.Is(x.body.failed(), errChunk) {
		return false, failf(http.StatusBadRequest, "PU01", "client problem: %s", errChunk)
	}
	if x.r.Context().Err() != nil {
		return false, failf(statusClientClosed, "", "the client went away").cause(err)
	}
	m, port := s.Machine, s.Service.InternalPort
	if _, ok := errors.AsType[*wakeError](err); ok {
		x.excluded = append(x.excluded, m.ID)
		x.last = wakeFailure(m, err)
		return true, nil
	}
	if de, ok := errors.AsType[*dialError](err); ok {
		// Not a byte of the request was seen: somebody else may take it, or
		// the same machine once it answers again.
		p.o.Health.Lost(m.Spec.Instance, port)
		if s.frozen {
			// Nobody listens on that port, frozen or not: wake it properly.
			p.awaken(x, m)
		}
		x.last = nil
		if !time.Now().Before(x.deadline) {
			return false, dialFailure(m, port, de)
		}
		return true, nil
	}
	if x.body != nil && !x.body.fromStart() || !idempotent(x.r) || *resends >= maxResends {
		f := failf(http.StatusBadGateway, "PU02", "machine %s closed the connection before it answered", m.ID).cause(err)
		if errors.Is(err, syscall.ECONNRESET) {
			f.Code = "PC03"
		}
		return false, f.hint("The app may have crashed; see its log with: roost logs -a %s", m.App)
	}
	*resends++
	return true, nil
}

// awaken starts a machine and waits until it runs or cannot.
func (p *Proxy) awaken(x *exchange, m *root.Machine) {
	f := p.flights.Start(m)
	select {
	case <-f.Done():
		if f.Err() != nil {
			x.excluded = append(x.excluded, m.ID)
			x.last = wakeFailure(m, f.Err())
		}
	case <-x.r.Context().Done():
	}
}

func dialFailure(m *root.Machine, port int, err error) *failure {
	f := failf(http.StatusBadGateway, "PC06", "could not connect to machine %s on port %d: %s", m.ID, port, bare(err))
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Code, f.Message = "PC01", fmt.Sprintf("machine %s refused the connection on port %d", m.ID, port)
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		f.Status, f.Code = http.StatusGatewayTimeout, "PC05"
	}
	return f.cause(err)
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// bare is the innermost text of a network error, without addresses.
func bare(err error) string {
	for e := errors.Unwrap(err); e != nil; e = errors.Unwrap(e) {
		err = e
	}
	return err.Error()
}

// idempotent reports whether a request may be sent twice (RFC 9110, section
// 9.2.2, and what an Idempotency-Key promises).
func idempotent(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.Header.Get("Idempotency-Key") != "" || r.Header.Get("X-Idempotency-Key") != ""
}

// respond streams the machine's answer to the client.
func (p *Proxy) respond(w http.ResponseWriter, x *exchange, s *slot, resp *http.Response) {
	h := w.Header()
	o := &s.Port.HTTP
	announced := len(resp.Trailer)
	removeHop(resp.Header)
	x.responseHeader(h, resp.Header, o)
	coding := compressed(h, x.r, resp, o)
	p.part(h)
	setIdle(x.r, o.IdleTimeout)
	if announced > 0 {
		names := make([]string, 0, announced)
		for name := range resp.Trailer {
			names = append(names, name)
		}
		h["Trailer"] = []string{strings.Join(names, ", ")}
	}
	w.WriteHeader(resp.StatusCode)
	x.rec.Status = resp.StatusCode
	n, err := stream(w, resp, coding)
	x.rec.Bytes = n
	if err != nil {
		x.rec.Err = err.Error()
		if x.r.Context().Err() == nil {
			x.rec.Code = "PU02"
		}
		panic(http.ErrAbortHandler) // the client must see that it is not whole
	}
	if len(resp.Trailer) == announced {
		maps.Copy(h, resp.Trailer)
		return
	}
	for name, values := range resp.Trailer {
		h[http.TrailerPrefix+name] = values
	}
}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// stream copies the body and sends on at once what came, unless the rest is
// sure to follow. sent is what the client gets, compressed with coding.
func stream(w http.ResponseWriter, resp *http.Response, coding string) (sent int64, err error) {
	var dst io.Writer = w
	var enc encoder
	total := int64(0) // of the machine's answer
	if coding != "" {
		out := &counted{Writer: w}
		defer func() { sent = out.n }()
		pool := encoders[coding]
		enc = pool.Get().(encoder)
		defer func() {
			enc.Reset(nil)
			pool.Put(enc)
		}()
		enc.Reset(out)
		dst = enc
	} else {
		defer func() { sent = total }()
	}
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	rc := http.NewResponseController(w)
	var extended time.Time // when the client's time to read was last extended
	defer func() {
		if !extended.IsZero() {
			_ = rc.SetWriteDeadline(time.Time{}) // for the next request
		}
	}()
	if resp.ContentLength < 0 {
		if err := rc.Flush(); err != nil {
			return 0, err
		}
	}
	for {
		n, rerr := resp.Body.Read(buf[:])
		if n > 0 {
			// Small answers fit into the kernel's buffers and cannot block.
			if total > smallAnswer {
				if now := time.Now(); now.Sub(extended) > writeTimeout/10 {
					extended = now
					_ = rc.SetWriteDeadline(now.Add(writeTimeout)) // without it, it only takes longer
				}
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return 0, err
			}
			total += int64(n)
			// A full buffer has more behind it: a compressor does better with it.
			if rerr == nil && total != resp.ContentLength && (enc == nil || n < len(buf)) {
				if enc != nil {
					if err := enc.Flush(); err != nil {
						return 0, err
					}
				}
				if err := rc.Flush(); err != nil {
					return 0, err
				}
			}
		}
		if errors.Is(rerr, io.EOF) {
			if enc != nil {
				return 0, enc.Close()
			}
			return 0, nil
		}
		if rerr != nil {
			return 0, rerr
		}
	}
}

func isReplayJSON(h http.Header) bool {
	ct, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.EqualFold(textproto.TrimString(ct), replay.ContentType)
}

// replay turns a machine's answer into the next target of the request. Nothing
// of the answer reaches the client.
func (p *Proxy) replay(x *exchange, s *slot, resp *http.Response) *failure {
	var wish *replay.Replay
	var err error
	if v := resp.Header[replay.Header]; len(v) > 0 {
		_, _ = io.CopyN(io.Discard, resp.Body, maxDiscard) // its end frees the connection; an error only costs it
		if len(v) > 1 {
			err = root.Errorf(root.Invalid, "fly-replay: more than one header")
		} else {
			wish, err = replay.ParseHeader(v[0])
		}
	} else {
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(resp.Body, replay.MaxJSON+1)); err == nil {
			wish, err = replay.ParseJSON(data)
		}
	}
	m := s.Machine
	if err != nil {
		return failf(http.StatusBadGateway, "PA03", "machine %s answered with a replay that is not valid: %s", m.ID, root.MessageOf(err)).cause(err)
	}
	if x.noReplay {
		return failf(http.StatusBadGateway, "PA03", "machine %s replayed a request that was delivered to it because a replay failed", m.ID)
	}
	if x.hops++; x.hops > maxReplays {
		return failf(http.StatusBadGateway, "PA02", "the request was replayed more than %d times, the last time by machine %s", maxReplays, m.ID).
			hint("Check the app for a loop: a machine should not replay what was replayed to it (header fly-replay-src).")
	}
	if x.body != nil && !x.body.replayable() {
		return failf(http.StatusRequestEntityTooLarge, "PA01", "the request's body is larger than %d MB and was not kept, so it cannot be replayed", maxBody>>20).
			hint("Send large uploads to the right machine directly, with the header fly-force-instance-id or fly-prefer-instance-id.")
	}
	target := m.App
	if wish.App != "" && wish.App != m.App {
		if f := p.mayReplay(m.App, wish.App); f != nil {
			return f
		}
		target = wish.App
	}
	x.src = &issuer{machine: m, state: wish.State, at: time.Now()}
	x.wish = wish
	x.aim(target, wish, p.o.Region)
	x.deadline = time.Now().Add(p.o.HoldTimeout)
	if wish.Timeout > 0 && wish.Timeout < p.o.HoldTimeout {
		x.deadline = time.Now().Add(wish.Timeout)
	}
	x.start0 = time.Now()
	return nil
}

// aim sets where the request goes next.
func (x *exchange) aim(app root.AppName, wish *replay.Replay, local root.Region) {
	if app != x.app {
		x.unrouted = false
	}
	x.app = app
	x.excluded, x.woken, x.last, x.preferredOut = nil, nil, nil, ""
	regions, every := replay.Expand(wish.Regions)
	x.want = balance.Want{Local: local, Regions: regions, Strict: len(wish.Regions) > 0 && !every, Instance: wish.PreferInstance}
	if wish.Instance != "" {
		x.want.Instance, x.want.Only = wish.Instance, true
	}
	if wish.Elsewhere && x.src != nil {
		x.excluded = append(x.excluded, x.src.machine.ID)
		// Who got the request by a route and does not want it means the app's
		// ordinary machines: others of its group would say the same.
		x.unrouted = x.unrouted || app == x.src.machine.App
	}
	if wish.Transform.Path != "" {
		x.path = wish.Transform.Path
	}
	if len(wish.Transform.DeleteHeaders)+len(wish.Transform.SetHeaders) > 0 {
		x.transforms = append(x.transforms, wish.Transform)
	}
}

// mayReplay checks that requests may go from one app to another.
func (p *Proxy) mayReplay(from, to root.AppName) *failure {
	snap := p.o.Catalog.Snapshot()
	a, b := snap.App(from), snap.App(to)
	switch {
	case b == nil:
		return failf(http.StatusBadGateway, "PA04", "app %s replayed the request to app %s, which does not exist", from, to)
	case a == nil || a.Org != b.Org:
		return failf(http.StatusBadGateway, "PA05", "app %s may not replay requests to app %s: they belong to different organisations", from, to)
	case a.Network != b.Network:
		return failf(http.StatusBadGateway, "PA05", "app %s may not replay requests to app %s: they are in different private networks", from, to)
	}
	return nil
}

// mayFallBack reports whether f means that no connection was made.
func mayFallBack(f *failure) bool {
	return strings.HasPrefix(f.Code, "PC0") && f.Code != "PC03" && f.Code != "PC04"
}

// fallBack returns a replayed request that could not be delivered to who
// replayed it, if that was asked for.
func (p *Proxy) fallBack(x *exchange, f *failure) bool {
	if x.wish == nil || x.wish.Fallback == replay.FallbackNone || x.noReplay || f.Status == statusClientClosed {
		return false
	}
	why := "no_candidate"
	switch {
	case !time.Now().Before(x.deadline):
		why = "timeout"
	case strings.HasPrefix(f.Code, "PC") || f.Code == "PM05":
		why = "retries_exhausted"
	}
	target := x.want.Instance
	src := x.src.machine
	x.failed = fmt.Sprintf("instance=%s;app=%s;region=%s;replay_source=%s;reason=%s;elapsed_ms=%d",
		target, x.app, strings.Join(x.wish.Regions, ","), src.ID, why, time.Since(x.start0).Milliseconds())
	x.app = src.App
	x.want = balance.Want{Local: p.o.Region, Instance: src.ID, Only: x.wish.Fallback == replay.FallbackForceSelf}
	x.excluded, x.woken, x.last, x.preferredOut = nil, nil, nil, ""
	x.src, x.path, x.transforms = nil, "", nil
	x.noReplay = true
	x.deadline = time.Now().Add(p.o.HoldTimeout)
	return true
}

func clip(s string) string {
	if len(s) > 100 {
		return strconv.Quote(s[:100]) + "..."
	}
	return strconv.Quote(s)
}
