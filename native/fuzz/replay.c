/* Gives each file of the folders named to the target it is linked with, in the order of their names: the committed
 * corpus, where there is no libFuzzer. The file that breaks something is the last one named. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_BYTES_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int is_file(const struct dirent *e) {
    return e->d_name[0] != '.';
}

static void fail(const char *path) {
    perror(path);
    exit(1);
}

static void replay(const char *path) {
    static uint8_t bytes[INPUT_BYTES_MAX];
    FILE *f = fopen(path, "rb");
    if (!f)
        fail(path);
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    uint8_t *exact = malloc(n ? n : 1); /* so that a read behind the end is seen */
    if (!exact)
        fail(path);
    memcpy(exact, bytes, n);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
}

int main(int argc, char **argv) {
    int all = 0;
    for (int i = 1; i < argc; i++) {
        struct dirent **entries;
        int n = scandir(argv[i], &entries, is_file, alphasort);
        if (n < 0)
            fail(argv[i]);
        for (int k = 0; k < n; k++, all++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[i], entries[k]->d_name);
            puts(path);
            fflush(stdout);
            replay(path);
            free(entries[k]);
        }
        free(entries);
    }
    printf("%d inputs\n", all);
    return all ? 0 : 1;
}
