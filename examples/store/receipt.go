package main

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"codeberg.org/go-pdf/fpdf"
)

// The receipts' colours and the widths of their columns in millimetres.
var (
	ink    = [3]int{33, 43, 40}
	accent = [3]int{31, 111, 84}
	faint  = [3]int{240, 244, 242}

	columns = []struct {
		title, align string
		width        float64
	}{{"Product", "L", 90}, {"Count", "R", 20}, {"Price", "R", 35}, {"Amount", "R", 35}}
)

// writeReceipts writes a document with a receipt for each purchase, each on a
// page of its own; with more than one a summary by month follows.
func writeReceipts(w io.Writer, title string, purchases []Purchase) error {
	pdf := fpdf.New("P", "mm", "A4", "")
	pdf.SetTitle(title, true)
	pdf.SetAuthor("Roost Store", true)
	pdf.SetCatalogSort(true) // the same purchases, the same document
	if len(purchases) > 0 {
		last := purchases[len(purchases)-1].At
		pdf.SetCreationDate(last)
		pdf.SetModificationDate(last)
	}
	pdf.SetMargins(15, 15, 15)
	pdf.SetAutoPageBreak(true, 20)
	pdf.AliasNbPages("{pages}")
	pdf.SetFooterFunc(func() {
		pdf.SetY(-14)
		font(pdf, "", 8)
		pdf.CellFormat(0, 6, fmt.Sprintf("Roost Store, page %d of {pages}", pdf.PageNo()), "", 0, "C", false, 0, "")
	})
	for _, p := range purchases {
		writeReceipt(pdf, p)
	}
	if len(purchases) > 1 {
		writeSummary(pdf, purchases)
	}
	return pdf.Output(w)
}

func font(pdf *fpdf.Fpdf, style string, size float64) {
	pdf.SetFont("Helvetica", style, size)
	pdf.SetTextColor(ink[0], ink[1], ink[2])
}

func writeReceipt(pdf *fpdf.Fpdf, p Purchase) {
	heading(pdf, "Receipt "+strconv.Itoa(p.ID), p.At.Format("2 January 2006, 15:04 MST"))
	pdf.CellFormat(0, 6, p.Customer+", "+p.City, "", 1, "L", false, 0, "")
	pdf.Ln(4)
	header(pdf)
	for i, item := range p.Items {
		if _, height := pdf.GetPageSize(); pdf.GetY() > height-35 {
			pdf.AddPage()
			header(pdf)
		}
		row(pdf, i, item.Product, strconv.Itoa(item.Count), item.Price.String(), item.Total().String())
	}
	total(pdf, p.Total)
}

func writeSummary(pdf *fpdf.Fpdf, purchases []Purchase) {
	heading(pdf, "Summary", fmt.Sprintf("%d purchases", len(purchases)))
	pdf.Ln(4)
	type sum struct {
		month string
		count int
		total Cents
	}
	var sums []sum
	all := Cents(0)
	for _, p := range purchases {
		month := p.At.Format("January 2006")
		if n := len(sums); n == 0 || sums[n-1].month != month {
			sums = append(sums, sum{month: month})
		}
		s := &sums[len(sums)-1]
		s.count, s.total, all = s.count+1, s.total+p.Total, all+p.Total
	}
	for i, s := range sums {
		row(pdf, i, s.month, strconv.Itoa(s.count), "", s.total.String())
	}
	total(pdf, all)
}

func heading(pdf *fpdf.Fpdf, title, sub string) {
	pdf.AddPage()
	font(pdf, "B", 20)
	pdf.SetTextColor(accent[0], accent[1], accent[2])
	pdf.CellFormat(0, 10, title, "", 1, "L", false, 0, "")
	font(pdf, "", 10)
	pdf.CellFormat(0, 6, sub, "", 1, "L", false, 0, "")
}

func header(pdf *fpdf.Fpdf) {
	font(pdf, "B", 10)
	for _, c := range columns {
		pdf.CellFormat(c.width, 8, c.title, "B", 0, c.align, false, 0, "")
	}
	pdf.Ln(8)
}

func row(pdf *fpdf.Fpdf, i int, cells ...string) {
	font(pdf, "", 10)
	pdf.SetFillColor(faint[0], faint[1], faint[2])
	for j, c := range columns {
		pdf.CellFormat(c.width, 7, cells[j], "", 0, c.align, i%2 == 1, 0, "")
	}
	pdf.Ln(7)
}

func total(pdf *fpdf.Fpdf, amount Cents) {
	pdf.Ln(2)
	font(pdf, "B", 12)
	pdf.CellFormat(columns[0].width+columns[1].width, 9, "", "", 0, "L", false, 0, "")
	pdf.CellFormat(columns[2].width, 9, "Total", "T", 0, "R", false, 0, "")
	pdf.CellFormat(columns[3].width, 9, amount.String(), "T", 1, "R", false, 0, "")
}

// receiptTitle names the document.
func receiptTitle(p Purchase) string {
	return fmt.Sprintf("Receipt %d of %s", p.ID, p.At.Format(time.DateOnly))
}
