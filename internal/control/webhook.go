package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/rollout"
)

// Poster sends a document to a URL by POST and returns the answer's status.
type Poster interface {
	Post(ctx context.Context, url string, body io.Reader) (status int, err error)
}

const (
	// webhookTries and webhookPause: whoever is told of failures may restart.
	webhookTries = 3
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

// webhook tells of the end of a release; what came of it is an event.
func (s *Releases) webhook(ctx context.Context, r *root.Release, tell rollout.Tell) {
	if r.Deploy.Webhook == "" || s.Poster == nil {
		return
	}
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
		s.Log.Error("webhook", "app", r.App, "err", err)
		return
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
				return
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
			tell(root.ReleaseEvent{Step: root.StepWebhook, Message: "the webhook at " + host + " was told"})
			return
		default:
			why = fmt.Sprintf("it answered %d", status)
		}
	}
	tell(root.ReleaseEvent{Step: root.StepWebhook, Warning: true, Message: fmt.Sprintf("the webhook at %s was not told: %s", host, why)})
}
