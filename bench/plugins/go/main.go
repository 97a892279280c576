// Work that plugins in Go do, for bench/compute.js. Each export reads its input and writes its result.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"image"
	"regexp"
	"sort"
	"strings"

	"github.com/extism/go-pdk"
	"golang.org/x/image/draw"
)

// side is the width and height of the image that resize takes, in pixels.
const side = 192

var address = regexp.MustCompile(`([a-z0-9._]+)@([a-z0-9-]+)\.(com|org)`)

type person struct {
	ID      int      `json:"id"`
	Name    string   `json:"name"`
	Email   string   `json:"email"`
	Balance float64  `json:"balance"`
	Tags    []string `json:"tags"`
	Address struct {
		Street string `json:"street"`
		City   string `json:"city"`
	} `json:"address"`
}

//go:wasmexport sha256
func hash() int32 {
	sum := sha256.Sum256(pdk.Input())
	pdk.Output(sum[:])
	return 0
}

// transformJSON sorts people by their balances and drops the poor.
//
//go:wasmexport json
func transformJSON() int32 {
	var people []person
	if err := json.Unmarshal(pdk.Input(), &people); err != nil {
		return fail(err)
	}
	sort.SliceStable(people, func(i, j int) bool { return people[i].Balance > people[j].Balance })
	kept := sort.Search(len(people), func(i int) bool { return people[i].Balance < 100 })
	output, err := json.Marshal(people[:kept])
	if err != nil {
		return fail(err)
	}
	pdk.Output(output)
	return 0
}

//go:wasmexport regexp
func hideAddresses() int32 {
	pdk.Output(address.ReplaceAll(pdk.Input(), []byte("$2 ($3)")))
	return 0
}

//go:wasmexport sort
func sortLines() int32 {
	lines := strings.Split(pdk.InputString(), "\n")
	sort.Strings(lines)
	pdk.OutputString(strings.Join(lines, "\n"))
	return 0
}

//go:wasmexport resize
func resize() int32 {
	source := &image.RGBA{Pix: pdk.Input(), Stride: 4 * side, Rect: image.Rect(0, 0, side, side)}
	result := image.NewRGBA(image.Rect(0, 0, side/2, side/2))
	draw.CatmullRom.Scale(result, result.Rect, source, source.Rect, draw.Src, nil)
	pdk.Output(result.Pix)
	return 0
}

//go:wasmexport gzip
func compress() int32 {
	var output bytes.Buffer
	writer := gzip.NewWriter(&output)
	if _, err := writer.Write(pdk.Input()); err != nil {
		return fail(err)
	}
	if err := writer.Close(); err != nil {
		return fail(err)
	}
	pdk.Output(output.Bytes())
	return 0
}

func fail(err error) int32 {
	pdk.SetError(err)
	return 1
}

func main() {}
