package roost

import (
	"net/http"
	"sync"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/ipc"
)

func (h *handlers) listImages(w http.ResponseWriter, r *http.Request) error {
	images, err := h.Images.List(r.Context(), route.Actor(r))
	if err != nil {
		return err
	}
	list := make([]client.Image, len(images))
	for i, info := range images {
		list[i] = client.Image{
			Ref: info.Ref(), Digest: string(info.Digest), Size: int64(info.Size), CreatedAt: info.CreatedAt.UTC(), InUse: info.InUse,
		}
	}
	return route.WriteJSON(w, http.StatusOK, list)
}

func (h *handlers) removeImage(w http.ResponseWriter, r *http.Request) error {
	ref, err := reference(r)
	if err != nil {
		return err
	}
	if err := h.Images.Remove(r.Context(), route.Actor(r), ref); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func reference(r *http.Request) (string, error) {
	ref := r.URL.Query().Get("ref")
	if ref == "" {
		return "", root.Errorf(root.Invalid, "query ref is missing: name the image, for example docker.io/library/debian:bookworm-slim")
	}
	return ref, nil
}

func (h *handlers) pullImage(w http.ResponseWriter, r *http.Request) error {
	ref, err := reference(r)
	if err != nil {
		return err
	}
	var login client.RegistryLogin
	if err := route.ReadJSON(r, &login, true); err != nil {
		return err
	}
	s := newProgress(w)
	image, err := h.Images.Pull(r.Context(), route.Actor(r), ref, control.RegistryLogin{User: login.User, Password: login.Password}, func(p control.PullProgress) {
		s.send(client.Progress{Layer: p.Layer, State: p.State, Done: int64(p.Done), Total: int64(p.Total)})
	})
	return s.finish(image, err)
}

func (h *handlers) loadImage(w http.ResponseWriter, r *http.Request) error {
	images, err := h.Images.Load(r.Context(), route.Actor(r), r.Body, r.URL.Query().Get("as"))
	if err != nil {
		return err
	}
	list := make([]client.Image, len(images))
	for i, image := range images {
		list[i] = fromImage(image)
	}
	return route.WriteJSON(w, http.StatusOK, list)
}

func fromImage(i root.Image) client.Image {
	return client.Image{Ref: i.Ref(), Digest: string(i.Digest)}
}

// progress is a stream of client.Progress. An error before its first line is
// the reply itself, with its status; a later one is the last line.
type progress struct {
	mu     sync.Mutex // guards what follows: builders log from several goroutines
	w      http.ResponseWriter
	stream *ipc.Stream
}

func newProgress(w http.ResponseWriter) *progress { return &progress{w: w} }

func (s *progress) send(p client.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(p)
}

func (s *progress) write(p client.Progress) {
	if s.stream == nil {
		s.stream = ipc.NewStream(s.w)
	}
	_ = s.stream.Send(p) // the client went away: the request's context ends
}

func (s *progress) finish(image root.Image, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if s.stream != nil {
			s.write(client.Progress{Error: failure(err)})
		}
		return err
	}
	out := fromImage(image)
	s.write(client.Progress{Image: &out})
	return nil
}

func failure(err error) *client.Failure {
	status, f := route.Render(err)
	return &client.Failure{Message: f.Error, Status: status, Code: f.Status}
}
