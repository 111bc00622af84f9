# Shows what pip is at: one line, rewritten on a terminal (tty=1), and every fiftieth package elsewhere.
/^(Collecting|Processing|Requirement already)/ {
    sub(/==.*/, "", $2)
    count++
    if (tty) printf "\r\033[K  %d of %d: %s", count, total, $2
    else if (count % 50 == 0) printf "  %d of %d\n", count, total
    fflush()
}
/^Installing collected packages/ {
    if (tty) printf "\r\033[K"
    printf "  %d packages are here, each with a listed hash; unpacking them\n", count
    fflush()
}
