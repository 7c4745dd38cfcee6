package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/state"
)

// Poster sends a document to a URL by POST and returns the answer's status.
type Poster interface {
	Post(ctx context.Context, url string, body io.Reader) (status int, err error)
}

const (
	// webhookTries and webhookPause: whoever is told of failures may restart.
	webhookTries = 4
	webhookPause = time.Second
	webhookTime  = 5 * time.Second
)

// webhookBody is what a webhook gets. Its "text" is what chat services show.
type webhookBody struct {
	Text        string    `json:"text"`
	App         string    `json:"app"`
	Release     int       `json:"release"`
	Status      string    `json:"status"`
	Message     string    `json:"message,omitempty"`
	Reason      string    `json:"reason"`
	Description string    `json:"description,omitempty"`
	Author      string    `json:"author,omitempty"`
	Image       string    `json:"image"`
	FinishedAt  time.Time `json:"finished_at"`
}

// checkWebhook lets http and https through. Where the URL leads is up to
// those who may deploy: the request leaves from the host, see decision 31.
func checkWebhook(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return root.Errorf(root.Invalid, "deploy.webhook: it has to be an http or https URL without user and password")
	}
	return nil
}

// tellWebhooks begins to tell the webhooks that are left to this host, by
// releases that ended just now or under a process before this one.
func (s *Releases) tellWebhooks(ctx context.Context, wg *sync.WaitGroup) {
	if s.Poster == nil {
		return
	}
	all, err := s.Store.Webhooks(ctx, s.Host)
	if err != nil {
		if ctx.Err() == nil {
			s.Log.Warn("webhooks that are to be told", "err", err)
		}
		return
	}
	for _, h := range all {
		s.mu.Lock()
		if !s.telling[h] {
			s.telling[h] = true
			wg.Go(func() {
				s.tellWebhook(ctx, h)
				s.mu.Lock()
				delete(s.telling, h)
				s.mu.Unlock()
			})
		}
		s.mu.Unlock()
	}
}

// tellWebhook tells one webhook; what came of it is an event of the release.
// When ctx ends the next process does it.
func (s *Releases) tellWebhook(ctx context.Context, h state.Webhook) {
	r, err := s.Store.Release(ctx, h.App, h.Version)
	e := root.ReleaseEvent{Step: root.StepWebhook}
	switch {
	case root.IsKind(err, root.NotFound): // it went with its app
	case err != nil:
		if ctx.Err() == nil {
			s.Log.Warn("webhook", "app", h.App, "release", h.Version, "err", err)
		}
		return
	default:
		e.Message, err = s.postWebhook(ctx, &r)
		e.Warning = err != nil
		if err != nil {
			e.Message = root.MessageOf(err)
		}
	}
	if ctx.Err() != nil {
		return
	}
	e.ID, e.At = ulid.Make().String(), s.Now().UTC()
	if err := s.Store.WebhookDone(ctx, h, e); err != nil && ctx.Err() == nil {
		s.Log.Warn("webhook", "app", h.App, "release", h.Version, "err", err)
		return
	}
	if e.Message != "" {
		s.Journal.Log(LogEntry{App: h.App, Provider: LogDeploy, Message: e.Message})
	}
}

// postWebhook tries until somebody took the news, or it was tried often.
func (s *Releases) postWebhook(ctx context.Context, r *root.Release) (string, error) {
	p := r.Progress
	text := fmt.Sprintf("%s: release v%d is %s", r.App, r.Version, p.Status)
	if p.Message != "" {
		text += ": " + p.Message
	}
	body, err := json.Marshal(webhookBody{
		Text: text, App: string(r.App), Release: r.Version, Status: string(p.Status), Message: p.Message, Reason: r.Reason,
		Description: r.Description, Author: r.Author, Image: r.Image.Ref(), FinishedAt: p.FinishedAt,
	})
	if err != nil {
		return "", err
	}
	host := r.Deploy.Webhook
	if u, err := url.Parse(host); err == nil {
		host = u.Host // the rest may be a secret
	}
	why := ""
	for try := range webhookTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return "", context.Cause(ctx)
			case <-time.After(webhookPause << try):
			}
		}
		one, cancel := context.WithTimeout(ctx, webhookTime)
		status, err := s.Poster.Post(one, r.Deploy.Webhook, bytes.NewReader(body))
		cancel()
		switch {
		case err != nil:
			s.Log.Info("webhook", "app", r.App, "try", try+1, "err", err)
			why = "it cannot be reached"
		case status < 300:
			return "the webhook at " + host + " was told", nil
		default:
			why = fmt.Sprintf("it answered %d", status)
		}
	}
	return "", root.Errorf(root.Unavailable, "the webhook at %s was not told, although it was tried %d times: %s", host, webhookTries, why)
}
