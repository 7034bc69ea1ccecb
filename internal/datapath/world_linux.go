package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/postern-dev/postern/internal/datapath/mapstate"
)

// world is a mapstate.World in the kernel.
type world struct {
	index    uint32
	trie     *ebpf.Map
	cells    *ebpf.Map
	entries  *ebpf.Map
	services *ebpf.Map

	trieMem, entryMem, cellMem *shared
}

// outer returns the four maps of maps, in the order of world's fields.
func (d *Datapath) outer() []*ebpf.Map {
	o := &d.objs
	return []*ebpf.Map{o.Trie, o.Cells, o.Entries, o.Services}
}

// room is the capacity for n elements: half as much again, or an eighth of many,
// so that most revisions fit without a new world.
func room(n, least int) uint32 { return uint32(max(n+min(n/2, max(n/8, 1<<16)), least)) }

// newWorld makes maps for c, fills them and makes them the world of index.
func (d *Datapath) newWorld(index uint32, c mapstate.Contents) (w *world, err error) {
	w = &world{index: index}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
			w = nil
		}
	}()
	make := func(dst **ebpf.Map, outer string, entries uint32) {
		if err != nil {
			return
		}
		spec := d.spec.Maps[outer].InnerMap.Copy()
		spec.MaxEntries = entries
		spec.Name = fmt.Sprintf("%.12s_%d", outer, index)
		if *dst, err = ebpf.NewMap(spec); err != nil {
			err = fmt.Errorf("map %s with %d entries: %w", outer, entries, err)
		}
	}
	make(&w.trie, "trie", room(len(c.Trie), 1024))
	make(&w.cells, "cells", room(len(c.Cells), 16384))
	make(&w.entries, "entries", room(len(c.Entries), 8192))
	make(&w.services, "services", room(len(c.Services), 1024))
	if err != nil {
		return w, err
	}
	for _, m := range []struct {
		dst **shared
		m   *ebpf.Map
	}{{&w.trieMem, w.trie}, {&w.entryMem, w.entries}, {&w.cellMem, w.cells}} {
		if *m.dst, err = mapShared(m.m); err != nil {
			return w, err
		}
	}
	err = errors.Join(
		copyIn(w.trieMem, 0, c.Trie), copyIn(w.entryMem, 0, c.Entries),
		copyIn(w.cellMem, 0, c.Cells), putAll(w.services, c.Services))
	if err != nil {
		return w, err
	}
	for i, m := range []*ebpf.Map{w.trie, w.cells, w.entries, w.services} {
		if err = d.outer()[i].Put(index, m); err != nil {
			return w, fmt.Errorf("world %d: %w", index, err)
		}
	}
	return w, nil
}

func (w *world) close() error {
	var errs []error
	for _, s := range []*shared{w.trieMem, w.entryMem, w.cellMem} {
		errs = append(errs, s.close())
	}
	for _, m := range []*ebpf.Map{w.trie, w.cells, w.entries, w.services} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// fits reports whether contents have room in w's maps.
func (w *world) fits(c mapstate.Contents) bool {
	return len(c.Trie) <= w.trieMem.len && len(c.Entries) <= w.entryMem.len &&
		len(c.Cells) <= w.cellMem.len && len(c.Services) <= int(w.services.MaxEntries())
}

// early writes what is not reachable yet, then the pointers.
func (w *world) early(c mapstate.Contents, ch *mapstate.Changes) error {
	for _, b := range ch.Lines {
		if err := copyIn(w.trieMem, int(b.Off), c.Trie[b.Off:b.Off+b.Len]); err != nil {
			return fmt.Errorf("trie: %w", err)
		}
	}
	for _, b := range ch.Entries {
		if err := copyIn(w.entryMem, int(b.Off), c.Entries[b.Off:b.Off+b.Len]); err != nil {
			return fmt.Errorf("entries: %w", err)
		}
	}
	for _, b := range ch.Cells {
		if b.Len == 1 { // may be read by those who ask for its neighbours
			if err := w.cellMem.store64(int(b.Off), c.Cells[b.Off]); err != nil {
				return fmt.Errorf("cells: %w", err)
			}
			continue
		}
		if err := copyIn(w.cellMem, int(b.Off), c.Cells[b.Off:b.Off+b.Len]); err != nil {
			return fmt.Errorf("cells: %w", err)
		}
	}
	for _, i := range ch.Pointers {
		line, word := i/mapstate.LineWords, i%mapstate.LineWords
		if err := w.trieMem.store(int(line), 4*int(word), c.Trie[line][word]); err != nil {
			return fmt.Errorf("trie: %w", err)
		}
	}
	if err := putAll(w.services, ch.Services); err != nil {
		return fmt.Errorf("services: %w", err)
	}
	for _, k := range ch.ServicesRemoved {
		if err := w.services.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("services: %w", err)
		}
	}
	return nil
}

// putAll writes all of src in batches.
func putAll[K comparable, V any](m *ebpf.Map, src map[K]V) error {
	if len(src) == 0 {
		return nil
	}
	if len(src) == 1 {
		for k, v := range src {
			return m.Put(k, v)
		}
	}
	const batch = 16384
	keys, values := make([]K, 0, min(len(src), batch)), make([]V, 0, min(len(src), batch))
	flush := func() error {
		if len(keys) == 0 {
			return nil
		}
		_, err := m.BatchUpdate(keys, values, nil)
		keys, values = keys[:0], values[:0]
		return err
	}
	for k, v := range src {
		keys, values = append(keys, k), append(values, v)
		if len(keys) == batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
