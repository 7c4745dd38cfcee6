package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the database/sql driver "sqlite", in pure Go
)

// Product is something the store sells.
type Product struct {
	ID          int
	Name, Group string
	Price       Cents
	Sold        int
}

// Purchase is what somebody bought on a day.
type Purchase struct {
	ID       int
	Customer string
	City     string
	At       time.Time
	Total    Cents
	Items    []Item
}

// Item is a line of a purchase.
type Item struct {
	Product string
	Count   int
	Price   Cents
}

// Total is the price of all of the item.
func (i Item) Total() Cents { return Cents(i.Count) * i.Price }

// Cents is an amount of money.
type Cents int

// String prints the amount in euros.
func (c Cents) String() string { return fmt.Sprintf("EUR %d.%02d", c/100, c%100) }

var errNotFound = errors.New("not found")

// store is the shop's database. It lives in memory and is made anew at every
// start, always with the same content, so that every machine has the same.
type store struct {
	db *sql.DB
	n  int // how many purchases there are, numbered from 1
}

// defaultPurchases is how many purchases there are unless PURCHASES says so.
const defaultPurchases = 2400

// longEvery makes each so many-th purchase one of many lines.
const longEvery = 100

const schema = `
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, grp TEXT, price INTEGER);
CREATE TABLE purchases (id INTEGER PRIMARY KEY, customer TEXT, city TEXT, at INTEGER, total INTEGER);
CREATE TABLE items (purchase INTEGER, product INTEGER, count INTEGER, price INTEGER);
`

func openStore(ctx context.Context, purchases int) (*store, error) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // a second connection would have a database of its own
	s := &store{db, purchases}
	if err := s.fill(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("fill the database: %w", err), db.Close())
	}
	return s, nil
}

func (s *store) close() { _ = s.db.Close() } // in memory: nothing to lose

func (s *store) fill(ctx context.Context) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back
	if _, err := tx.ExecContext(ctx, schema); err != nil {
		return err
	}
	products := catalogue()
	into := func(table string, columns int) *batch { return &batch{tx: tx, table: table, columns: columns} }
	rows := into("products", 4)
	for _, p := range products {
		rows.add(ctx, p.ID, p.Name, p.Group, int(p.Price))
	}
	purchases, items := into("purchases", 5), into("items", 4)
	random := rand.New(rand.NewPCG(2026, 1))
	day := time.Date(2026, 1, 1, 8, 0, 0, 0, time.UTC)
	for id := 1; id <= s.n; id++ {
		lines := 1 + random.IntN(5)
		if id%longEvery == 0 {
			lines = 60
		}
		total := Cents(0)
		for range lines {
			p, count := products[random.IntN(len(products))], 1+random.IntN(3)
			total += Cents(count) * p.Price
			items.add(ctx, id, p.ID, count, int(p.Price))
		}
		at := day.Add(time.Duration(id) * 3 * time.Hour)
		purchases.add(ctx, id, pick(random, firstNames)+" "+pick(random, lastNames), pick(random, cities), at.Unix(), int(total))
	}
	for _, b := range []*batch{rows, purchases, items} {
		if err := b.flush(ctx); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "CREATE INDEX items_purchase ON items (purchase); CREATE INDEX items_product ON items (product, count)"); err != nil {
		return err
	}
	return tx.Commit()
}

// batch inserts many rows with one statement, which is what makes a start fast.
type batch struct {
	tx      *sql.Tx
	table   string
	columns int
	values  []any
	err     error
}

const batchRows = 500

func (b *batch) add(ctx context.Context, values ...any) {
	b.values = append(b.values, values...)
	if len(b.values) >= batchRows*b.columns {
		_ = b.flush(ctx) // kept in b.err
	}
}

func (b *batch) flush(ctx context.Context) error {
	if b.err == nil && len(b.values) > 0 {
		row := "(?" + strings.Repeat(",?", b.columns-1) + ")"
		query := "INSERT INTO " + b.table + " VALUES " + row + strings.Repeat(","+row, len(b.values)/b.columns-1)
		_, b.err = b.tx.ExecContext(ctx, query, b.values...)
	}
	b.values = b.values[:0]
	return b.err
}

func pick(random *rand.Rand, words []string) string { return words[random.IntN(len(words))] }

var (
	firstNames = []string{"Ada", "Alan", "Barbara", "Dennis", "Edsger", "Frances", "Grace", "Hedy", "Ken", "Margaret", "Niklaus", "Radia", "Robin", "Tony"}
	lastNames  = []string{"Abbott", "Berg", "Carvalho", "Dvorak", "Eriksen", "Fontaine", "Garcia", "Haas", "Ito", "Jansen", "Kaur", "Lindholm", "Moreau", "Novak", "Okafor"}
	cities     = []string{"Amsterdam", "Berlin", "Lisbon", "Lyon", "Oslo", "Prague", "Turin", "Vienna"}
)

// catalogue is what the store sells: every kind of thing in every wood.
func catalogue() []Product {
	var list []Product
	for g, group := range []struct {
		name   string
		things []string
	}{
		{"Kitchen", []string{"bowl", "chopping board", "salt box", "spoon"}},
		{"Desk", []string{"lamp", "letter tray", "pen stand", "bookend"}},
		{"Nest", []string{"bird house", "feeder", "perch", "egg cup"}},
	} {
		for t, thing := range group.things {
			for w, wood := range []string{"Ash", "Beech", "Cherry", "Oak", "Walnut"} {
				list = append(list, Product{ID: len(list) + 1, Name: wood + " " + thing, Group: group.name, Price: Cents(890 + 410*w + 730*t + 1150*g)})
			}
		}
	}
	return list
}

func (s *store) products(ctx context.Context) ([]Product, error) {
	return query(ctx, s.db, func(rows *sql.Rows, p *Product) error { return rows.Scan(&p.ID, &p.Name, &p.Group, &p.Price, &p.Sold) },
		`SELECT id, name, grp, price, (SELECT coalesce(sum(count), 0) FROM items WHERE product = products.id) FROM products ORDER BY id`)
}

func (s *store) count(ctx context.Context) (n int, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT count(*) FROM purchases`).Scan(&n)
	return n, err
}

// list returns a page of purchases, newest first, without their items.
func (s *store) list(ctx context.Context, limit, offset int) ([]Purchase, error) {
	return query(ctx, s.db, scanPurchase, `SELECT id, customer, city, at, total FROM purchases ORDER BY id DESC LIMIT ? OFFSET ?`, limit, offset)
}

func scanPurchase(rows *sql.Rows, p *Purchase) error {
	var at int64
	err := rows.Scan(&p.ID, &p.Customer, &p.City, &at, &p.Total)
	p.At = time.Unix(at, 0).UTC()
	return err
}

// purchase returns one purchase with its items, or errNotFound.
func (s *store) purchase(ctx context.Context, id int) (Purchase, error) {
	list, err := query(ctx, s.db, scanPurchase, `SELECT id, customer, city, at, total FROM purchases WHERE id = ?`, id)
	if err != nil {
		return Purchase{}, err
	}
	if len(list) == 0 {
		return Purchase{}, errNotFound
	}
	p := list[0]
	p.Items, err = query(ctx, s.db, func(rows *sql.Rows, i *Item) error { return rows.Scan(&i.Product, &i.Count, &i.Price) },
		`SELECT name, count, items.price FROM items JOIN products ON products.id = product WHERE purchase = ? ORDER BY items.rowid`, id)
	return p, err
}

// all returns every purchase with its items.
func (s *store) all(ctx context.Context) ([]Purchase, error) {
	list, err := query(ctx, s.db, scanPurchase, `SELECT id, customer, city, at, total FROM purchases ORDER BY id`)
	if err != nil {
		return nil, err
	}
	type line struct {
		purchase int
		item     Item
	}
	lines, err := query(ctx, s.db, func(rows *sql.Rows, l *line) error {
		return rows.Scan(&l.purchase, &l.item.Product, &l.item.Count, &l.item.Price)
	}, `SELECT purchase, name, count, items.price FROM items JOIN products ON products.id = product ORDER BY items.rowid`)
	for _, l := range lines {
		p := &list[l.purchase-1] // ids count from 1 without gaps
		p.Items = append(p.Items, l.item)
	}
	return list, err
}

func query[T any](ctx context.Context, db *sql.DB, scan func(*sql.Rows, *T) error, text string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var list []T
	for rows.Next() {
		var v T
		if err := scan(rows, &v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}
