package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

//go:embed templates/*.html static
var assets embed.FS

// site is the store's pages and documents.
type site struct {
	store   *store
	machine string // shown on every page
	pages   map[string]*template.Template
	log     *slog.Logger
}

// pageSize is how many purchases a page lists.
const pageSize = 25

// newSite returns the store's pages. Every answer says which machine gave it,
// and which start of the process (boot).
func newSite(store *store, machine, boot string, log *slog.Logger) http.Handler {
	s := &site{store: store, machine: machine, log: log, pages: make(map[string]*template.Template)}
	for _, name := range []string{"home", "purchases", "purchase", "problem"} {
		s.pages[name] = template.Must(template.ParseFS(assets, "templates/layout.html", "templates/"+name+".html"))
	}
	mux := http.NewServeMux()
	mux.Handle("GET /static/", http.FileServerFS(assets))
	mux.HandleFunc("GET /healthz", s.health)
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /{$}":                    s.home,
		"GET /purchases":              s.purchases,
		"GET /purchases/{id}":         s.purchase,
		"GET /purchases/{id}/receipt": s.receipt,
		"GET /purchases/receipts":     s.receipts,
		"GET /{rest...}":              func(http.ResponseWriter, *http.Request) error { return errNotFound },
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				s.problem(w, r, err)
			}
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Store-Machine", machine)
		w.Header().Set("Store-Boot", boot)
		mux.ServeHTTP(w, r)
	})
}

// page is what every template gets.
type page struct {
	Title, Machine string
	Took           time.Duration // to gather Data
	Data           any
}

func (s *site) show(w http.ResponseWriter, status int, name, title string, began time.Time, data any) error {
	var buf bytes.Buffer // a template that fails must not leave half a page
	p := page{Title: title, Machine: s.machine, Took: time.Since(began).Round(10 * time.Microsecond), Data: data}
	if err := s.pages[name].ExecuteTemplate(&buf, "layout", p); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = buf.WriteTo(w) // the client went away
	return nil
}

func (s *site) problem(w http.ResponseWriter, r *http.Request, err error) {
	status, text := http.StatusInternalServerError, "Something went wrong on our side."
	if errors.Is(err, errNotFound) {
		status, text = http.StatusNotFound, "There is nothing at this address."
	} else if r.Context().Err() == nil {
		s.log.Error("request failed", "path", r.URL.Path, "err", err)
	}
	if err := s.show(w, status, "problem", http.StatusText(status), time.Now(), text); err != nil {
		http.Error(w, text, status)
	}
}

func (s *site) health(w http.ResponseWriter, r *http.Request) {
	if err := s.store.db.PingContext(r.Context()); err != nil {
		http.Error(w, "database: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok") // nobody to tell
}

func (s *site) home(w http.ResponseWriter, r *http.Request) error {
	began := time.Now()
	products, err := s.store.products(r.Context())
	if err != nil {
		return err
	}
	return s.show(w, http.StatusOK, "home", "Things made of wood", began, products)
}

func (s *site) purchases(w http.ResponseWriter, r *http.Request) error {
	began := time.Now()
	number, err := strconv.Atoi(r.URL.Query().Get("page"))
	last := (s.store.n + pageSize - 1) / pageSize
	if err != nil || number < 1 || number > last {
		number = 1
	}
	list, err := s.store.list(r.Context(), pageSize, (number-1)*pageSize)
	if err != nil {
		return err
	}
	return s.show(w, http.StatusOK, "purchases", "Purchases", began, map[string]any{
		"Purchases": list, "Page": number, "Last": last, "Newer": number - 1, "Older": number + 1, "Count": s.store.n,
	})
}

// find returns the purchase that the path names.
func (s *site) find(r *http.Request) (Purchase, error) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		return Purchase{}, errNotFound
	}
	return s.store.purchase(r.Context(), id)
}

func (s *site) purchase(w http.ResponseWriter, r *http.Request) error {
	began := time.Now()
	p, err := s.find(r)
	if err != nil {
		return err
	}
	return s.show(w, http.StatusOK, "purchase", fmt.Sprintf("Purchase %d", p.ID), began, p)
}

func (s *site) receipt(w http.ResponseWriter, r *http.Request) error {
	p, err := s.find(r)
	if err != nil {
		return err
	}
	return s.document(w, r, receiptTitle(p), fmt.Sprintf("receipt-%d.pdf", p.ID), []Purchase{p})
}

func (s *site) receipts(w http.ResponseWriter, r *http.Request) error {
	all, err := s.store.all(r.Context())
	if err != nil {
		return err
	}
	return s.document(w, r, "All receipts", "receipts.pdf", all)
}

func (s *site) document(w http.ResponseWriter, r *http.Request, title, name string, purchases []Purchase) error {
	began := time.Now()
	var buf bytes.Buffer
	if err := writeReceipts(&buf, title, purchases); err != nil {
		return err
	}
	s.log.Info("made a document", "path", r.URL.Path, "receipts", len(purchases), "size", buf.Len(), "took", time.Since(began))
	w.Header().Set("Content-Type", "application/pdf")
	w.Header().Set("Content-Disposition", fmt.Sprintf("inline; filename=%q", name))
	w.Header().Set("Content-Length", strconv.Itoa(buf.Len()))
	_, _ = buf.WriteTo(w) // the client went away
	return nil
}
