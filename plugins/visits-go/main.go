// Counts visits, and says who came before: what a plugin does with a store, in Go.
package main

import (
	"fmt"

	"github.com/extism/go-pdk"
)

//go:wasmimport extism:host/user hostStoreIncrement
func hostStoreIncrement(key uint64, delta int64) int64

//go:wasmimport extism:host/user hostStoreGet
func hostStoreGet(key uint64) int64

//go:wasmimport extism:host/user hostStoreSet
func hostStoreSet(key, value uint64, ttl int64) int64

const (
	missing = -1
	day     = 24 * 60 * 60 * 1000
)

// offset is that of a block with this text.
func offset(text string) uint64 {
	memory := pdk.AllocateString(text)
	return memory.Offset()
}

// text is what the store has answered; an error where that is a negative number.
func text(answer int64) (string, error) {
	if answer < 0 {
		return "", fmt.Errorf("the store says %d", answer)
	}
	memory := pdk.FindMemory(uint64(answer))
	return string(memory.ReadBytes()), nil
}

func visit(name string) (string, error) {
	number, err := text(hostStoreIncrement(offset("visits:"+name), 1))
	if err != nil {
		return "", err
	}
	before := "nobody"
	if answer := hostStoreGet(offset("last")); answer != missing {
		if before, err = text(answer); err != nil {
			return "", err
		}
	}
	if _, err = text(hostStoreSet(offset("last"), offset(name), day)); err != nil {
		return "", err
	}
	return fmt.Sprintf("visit %s of %s, after %s", number, name, before), nil
}

//go:wasmexport visit
func export() int32 {
	answer, err := visit(pdk.InputString())
	if err != nil {
		pdk.SetError(err)
		return 1
	}
	pdk.OutputString(answer)
	return 0
}

func main() {}
