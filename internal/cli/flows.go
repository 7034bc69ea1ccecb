package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/control"
	"github.com/postern-dev/postern/internal/flow"
)

// defaultLimit is how many records are shown if nothing else bounds them.
const defaultLimit = 100

func (a *app) flowsCommand() *cobra.Command {
	var f control.Filter
	var since string
	cmd := &cobra.Command{
		Use: "flows", Aliases: []string{"flow"}, GroupID: "agent", Args: cobra.NoArgs,
		Short: "What was allowed and dropped, by which rule",
		Long: `What was allowed and dropped, by which rule; the newest last.

A record is made of a flow's first packet, of each dropped packet, and of a flow's
end ("closed"). Both ends have their names; an end outside of the cluster has its
address. SENT and BACK are bytes, from the opener and to it. RULE is the rule that
decided, or the reason in words with [its name], if no rule was asked. On a terminal
too narrow for all of it the rule is shortened or gets a line of its own, and bytes,
direction and at last the time are left out; a pipe gets everything.

All filters must hold. Without --since, --limit or --follow the newest 100 are shown.
With -o json each record is a JSON object on a line of its own.

With --follow a line says where records are missing: more came than were read, or
than the kernel had room for. In JSON it is an object of the type "lost".`,
		Example: `  postern flows --verdict dropped --since 10m
  postern flows --pod shop/frontend --to 203.0.113.0/24
  postern flows --follow --rule default-deny
  postern flows -o json --since 1h | jq -r .remote.addr | sort | uniq -c`,
	}
	a.agentFlags(cmd)
	asJSON := outputFlag(cmd)
	fl := cmd.Flags()
	fl.BoolVarP(&f.Follow, "follow", "f", false, "go on with what comes")
	fl.StringVar(&f.Pod, "pod", "", "either end is this pod: NAMESPACE/NAME or NAME")
	fl.StringVar(&f.Verdict, "verdict", "", "forwarded, dropped or deferred (decided behind a Service)")
	fl.StringVar(&f.To, "to", "", "destination: address, network, NAMESPACE/NAME, NAME or NAMESPACE/")
	fl.StringVar(&f.Rule, "rule", "", "part of the rule's text, or a reason's name")
	fl.StringVar(&since, "since", "", "not older than this: 10m, 1h30m, or a time such as 2026-01-31T15:04:05Z")
	fl.IntVar(&f.Limit, "limit", 0, "only the newest N")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		js, err := asJSON()
		if err != nil {
			return err
		}
		if err := a.completeFilter(&f, since, cmd.Flags().Changed("limit")); err != nil {
			return err
		}
		return a.flows(cmd.Context(), f, js)
	}
	return cmd
}

// completeFilter checks the filter and fills in what flags leave open.
func (a *app) completeFilter(f *control.Filter, since string, limited bool) error {
	switch f.Verdict {
	case "", "forwarded", "dropped", "deferred":
	default:
		return usagef("--verdict %q: want forwarded, dropped or deferred", f.Verdict)
	}
	if !isDestination(f.To) {
		return usagef("--to %q: want an address, a network, NAMESPACE/NAME, NAME or NAMESPACE/", f.To)
	}
	if limited && f.Limit < 1 {
		return usagef("--limit %d: want at least 1", f.Limit)
	}
	if since != "" {
		if d, err := time.ParseDuration(since); err == nil && d > 0 {
			f.Since = a.Now().Add(-d)
		} else if t, err := time.Parse(time.RFC3339, since); err == nil {
			f.Since = t
		} else {
			return usagef("--since %q: want a duration such as 10m, or a time such as 2026-01-31T15:04:05Z", since)
		}
	}
	if !limited && since == "" && !f.Follow {
		f.Limit = defaultLimit
	}
	return nil
}

// kubeName is what the name of a Kubernetes object looks like.
// Source: RFC 1123 section 2.1, as apimachinery's IsDNS1123Subdomain.
var kubeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// isDestination reports whether records can have what --to names. What looks like
// an address has to be one.
func isDestination(s string) bool {
	if s == "" {
		return true
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return true
	}
	first, second, pair := strings.Cut(s, "/")
	if strings.Contains(first, ".") && strings.Trim(first, "0123456789.") == "" {
		return false
	}
	return kubeName.MatchString(first) && (!pair || second == "" || kubeName.MatchString(second))
}

func (a *app) flows(ctx context.Context, f control.Filter, js bool) error {
	n := 0
	var t *table
	if !js {
		t = a.newTable("TIME", "DIR", "FROM", "TO", "PORT", "VERDICT", "SENT", "BACK", "RULE")
		const (
			timeColumn, dirColumn, sentColumn, backColumn = 0, 1, 6, 7
		)
		a.fit(t,
			layout{brief: true},
			layout{brief: true, hide: []int{backColumn, sentColumn}},
			layout{brief: true, hide: []int{backColumn, sentColumn, dirColumn}},
			layout{below: true},
			layout{below: true, hide: []int{backColumn, sentColumn}},
			layout{below: true, hide: []int{backColumn, sentColumn, dirColumn}},
			layout{below: true, hide: []int{backColumn, sentColumn, dirColumn, timeColumn}},
		)
		if f.Follow {
			t.width = []int{12, 7, 16, 16, 9, 9, 5, 5, 4} // it only grows while it is followed: start with some room
		}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	done := a.progress("waiting for the agent at " + a.socket)
	defer done()
	err = c.FlowsAndLosses(ctx, f, func(r flow.Record) error {
		if n == 0 {
			done()
		}
		n++
		if js {
			return a.printLine(r)
		}
		t.add(a.flowRow(r)...)
		if f.Follow {
			return t.flush()
		}
		return nil
	}, func(l control.Lost) error {
		done()
		if js {
			return a.printLine(l)
		}
		a.errf("%s\n", lostText(l))
		return nil
	})
	done()
	switch {
	case ctx.Err() != nil && f.Follow:
		return nil // Ctrl-C is how following ends
	case errors.Is(err, control.ErrNoAgent):
		return a.hint(err)
	case err != nil:
		return err
	case js:
		return nil
	case n == 0:
		a.errf("no records\n")
		return nil
	}
	if err := t.flush(); err != nil {
		return err
	}
	if n == defaultLimit && f.Limit == defaultLimit && f.Since.IsZero() && a.ErrTTY {
		a.errf("(the newest %d; --since or --limit shows more)\n", n)
	}
	return nil
}

// lostText says that records are missing.
func lostText(l control.Lost) string {
	if l.Where == control.LostByKernel {
		return fmt.Sprintf("(%s lost here by the kernel, of this pod or another; the counters of `postern endpoints` are exact nevertheless)", plural(int(l.Lost), "event"))
	}
	return fmt.Sprintf("(%s lost here: they came faster than they were read)", plural(int(l.Lost), "record"))
}

// printLine writes v as JSON on one line.
func (a *app) printLine(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err := a.Out.Write(cleanJSON(b.Bytes()))
	return err
}

func (a *app) flowRow(r flow.Record) []cell {
	from, to := &r.Local, &r.Remote
	if r.Dir == "ingress" {
		from, to = to, from
	}
	port := r.Proto
	if to.Port != 0 {
		port += "/" + strconv.Itoa(int(to.Port))
	}
	v := cell{text: r.Verdict}
	switch {
	case r.Verdict == "dropped":
		v.style = red
	case r.Type == "close":
		v.text, v.style = "closed", dim
	case r.Verdict == "forwarded":
		v.style = green
	default:
		v.style = yellow
	}
	out, back := "-", "-"
	if r.PacketsOut > 0 || r.BytesOut > 0 {
		out = bytesText(r.BytesOut)
	}
	if r.Type == "close" {
		back = bytesText(r.BytesBack)
	}
	return []cell{
		text(a.timeText(r.Time)), text(r.Dir), text(endText(from)), text(endText(to)), text(port),
		v, number(out), number(back), ruleCell(r.Rule),
	}
}

// timeText is the time of day; with the date if it is not today.
func (a *app) timeText(t time.Time) string {
	now := a.Now()
	t = t.In(now.Location())
	if t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04:05.000")
	}
	return t.Format("2006-01-02 15:04:05")
}

// endText names an end: a pod as namespace/name, nodes and services with what
// they are, the rest of the world by address.
func endText(e *flow.End) string {
	name := e.Name
	if e.Namespace != "" {
		name = e.Namespace + "/" + e.Name
	}
	switch {
	case name == "":
		return e.Addr.String()
	case e.Kind == "pod":
		return name
	}
	return e.Kind + " " + name
}
